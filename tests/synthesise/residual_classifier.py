"""A small classifier with BatchNormalization and a residual block, for finite differences."""

from __future__ import annotations

import numpy as np

TEXT = """net (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    n = BatchNormalization <epsilon = 0.01> (c, s, b, m, v) r = LeakyRelu <alpha = 0.3> (n)
    d = Conv (r, u, e) a = Add (c, d) g = GlobalAveragePool (a) f = Flatten (g)
    l = Gemm <transB = 1> (f, h, k) y = Mul (l, five)
}"""
WEIGHTS = {
    "w": (6, 3, 3, 3),
    "s": np.full(6, 2, np.float32),
    "b": np.full(6, 0.1, np.float32),
    "m": np.full(6, 0.2, np.float32),
    "v": np.full(6, 0.7, np.float32),
    "u": (6, 6, 1, 1),
    "e": (6,),
    "h": (5, 6),
    "k": (5,),
    "five": np.array(5, np.float32),
}
