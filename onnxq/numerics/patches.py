"""The rows of a layer's input that its weights multiply, and the rows of its output.

Every output of Conv, Gemm and MatMul is a sum over a row of inputs, y[r] = sum_k W[r, k] x[k].
Weights are seen as (G, R, K): G groups, R output channels of each, K inputs of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.numerics.qparams import FloatArray


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        op_type: Conv, Gemm or MatMul.
        shape: of the weight.
        axis: the weight's axis of output channels.
        groups: of a convolution.
        strides: of a convolution, one per spatial axis.
        dilations: the same.
        pads: begin of each spatial axis, then end of each.
    """

    op_type: str
    shape: tuple[int, ...]
    axis: int
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    def to_rows(self, weight: np.ndarray) -> np.ndarray:
        """A weight as (G, R, K)."""
        if self.op_type == "Conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        return (weight if self.axis == 0 else weight.T)[None]

    def from_rows(self, rows: np.ndarray) -> np.ndarray:
        """(G, R, K) as a weight."""
        if self.op_type == "Conv" or self.axis == 0:
            return rows.reshape(self.shape)
        return np.ascontiguousarray(rows[0].T)

    def places(self, output: tuple[int, ...]) -> int:
        """The number of rows that an output of this shape has."""
        channels = self.shape[self.axis]
        return int(np.prod(output, dtype=np.int64)) // channels

    def outputs(self, y: FloatArray, chosen: np.ndarray) -> FloatArray:
        """Rows of the output, (rows, G, R), at these places."""
        rows = np.moveaxis(y, 1, -1) if self.op_type == "Conv" else y
        flat = rows.reshape(-1, rows.shape[-1])[chosen]
        return np.asarray(flat.reshape(len(chosen), self.groups, -1))

    def inputs(self, x: FloatArray, chosen: np.ndarray) -> FloatArray:
        """Rows of the input, (rows, G, K), for the outputs at these places."""
        if self.op_type != "Conv":
            return np.asarray(x.reshape(-1, x.shape[-1])[chosen][:, None, :])
        windows = self._windows(x)
        n = windows.ndim // 2 - 1
        index = np.unravel_index(chosen, (windows.shape[0], *windows.shape[2 : 2 + n]))
        where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
        return np.asarray(windows[where].reshape(len(chosen), self.groups, -1))

    def _windows(self, x: FloatArray) -> np.ndarray:
        """(N, C, *out, *kernel): a view of the padded input."""
        n = x.ndim - 2
        edges = [(0, 0), (0, 0), *zip(self.pads[:n], self.pads[n:], strict=True)]
        padded = np.pad(x, edges) if any(self.pads) else x
        kernel = self.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + n)))
        steps = (slice(None, None, s) for s in self.strides)
        gaps = (slice(None, None, d) for d in self.dilations)
        return np.asarray(windows[(slice(None), slice(None), *steps, *gaps)])
