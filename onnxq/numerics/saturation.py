"""Where the 16-bit sums of x86 processors without VNNI overflow.

There `vpmaddubsw` multiplies unsigned by signed bytes and adds adjacent products in 16 bits,
saturating: |sum| can reach 255 * (|w1| + |w2|), which must not exceed 32,767. Codes of 7 bits
can't: 255 * (63 + 63) = 32,130.
"""

from __future__ import annotations

import numpy as np

from onnxq.numerics.qparams import IntArray

LARGEST_CODE = 255
LIMIT = 32767


def may_saturate(codes: IntArray, axis: int) -> bool:
    """Whether two adjacent products of an output channel can leave 16 bits.

    A convolution's products are adjacent along its input channels, as ONNX Runtime orders
    them. A depth-wise convolution has one input channel and other kernels: never.

    Args:
        codes: signed weight codes, of a Conv (out, in/group, ...), Gemm or MatMul.
        axis: the axis of output channels.
    """
    rows = np.moveaxis(codes, axis, 0)
    if codes.ndim > 2:
        if codes.shape[1] == 1:
            return False
        rows = np.moveaxis(codes, 1, -1)
    rows = np.abs(rows.reshape(rows.shape[0], -1).astype(np.int32))
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return bool((LARGEST_CODE * (rows[:, 0::2] + rows[:, 1::2]) > LIMIT).any())
