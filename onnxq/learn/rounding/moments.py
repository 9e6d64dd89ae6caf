"""Moments of a layer's inputs behind quantized layers, and of the outputs wanted there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.numerics.error_feedback import Floats
from onnxq.numerics.patches import Geometry
from onnxq.numerics.qparams import FloatArray


class Moments:
    """Running sums over rows of inputs x and wanted outputs t, in float64.

    Rows are taken from the mean of the first micro-batch: products are float32, and inputs that
    hardly vary about a large mean would leave nothing else.

    Args:
        geometry: how the layer reads its input.
        seed: of the choice of rows.
        rows: in each micro-batch at most; of more, as many are drawn.

    Attributes:
        geometry: how the layer reads its input.
    """

    def __init__(self, geometry: Geometry, seed: Sequence[int], rows: int) -> None:
        self.geometry, self._most = geometry, rows
        self._random = np.random.default_rng(seed)
        self._sums: list[Floats] = []
        self._count = 0

    def add(self, x: FloatArray, t: FloatArray) -> None:
        """One micro-batch: the layer's input and the output wanted of it."""
        places = self.geometry.places(t.shape)
        chosen = np.arange(places)
        if places > self._most:
            chosen = np.sort(self._random.choice(places, self._most, replace=False))
        inputs = self.geometry.inputs(x, chosen).transpose(1, 2, 0)
        wanted = self.geometry.outputs(t, chosen).transpose(1, 2, 0)
        if not self._sums:
            self._x, self._t = (each.mean(axis=2, keepdims=True) for each in (inputs, wanted))
        # What is not finite is told by `finite`.
        with np.errstate(invalid="ignore", over="ignore"):
            inputs, wanted = inputs - self._x, wanted - self._t
            rows = inputs.transpose(0, 2, 1)
            sums = (inputs @ rows, wanted @ rows, inputs.sum(axis=2), wanted.sum(axis=2))
        if not self._sums:
            self._sums = [np.zeros(each.shape) for each in sums]
        for total, each in zip(self._sums, sums, strict=True):
            total += each
        self._count += len(chosen)

    @property
    def finite(self) -> bool:
        """Whether no input and no output was infinite or NaN."""
        return all(bool(np.isfinite(each).all()) for each in self._sums)

    def means(self) -> tuple[Floats, Floats]:
        """E[x], (G, K), and E[t], (G, R)."""
        x, t = self._offsets()
        return self._x[..., 0] + x, self._t[..., 0] + t

    def _offsets(self) -> tuple[Floats, Floats]:
        """How far the means lie from those of the first micro-batch."""
        return self._sums[2] / self._count, self._sums[3] / self._count

    def second(self, bias: Floats | None) -> tuple[Floats, Floats]:
        """E[x x^T], (G, K, K), and E[(t - b) x^T], (G, R, K).

        Args:
            bias: b, (G, R), what the layer adds; None where it is free to add what suits its
                weights best, which makes these the covariances.
        """
        x, t = self._offsets()
        hessian = self._sums[0] / self._count - x[:, :, None] * x[:, None, :]
        cross = self._sums[1] / self._count - t[:, :, None] * x[:, None, :]
        if bias is None:
            return hessian, cross
        x, t = self.means()
        wanted = (t - bias)[:, :, None]
        return hessian + x[:, :, None] * x[:, None, :], cross + wanted * x[:, None, :]
