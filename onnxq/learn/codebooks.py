"""Train the centroids and channel scales of codebooks; the indices stay.

    W_i = s c_k,   dL/dc_k = sum over the weights i with index k of  s dL/dW_i
                   dL/ds   = sum over the weights i of the channel of  c_k dL/dW_i

Trained are c / unit and s / s_0. The unit is the largest centroid; int8 centroids, which are
rounded straight-through, have the largest int8 value. Both are of the order of 1, like threshold
scales, so one learning rate serves all. Neither costs a byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq.numerics.codebook import Codebook
from onnxq.numerics.quantizers import FloatArray, per_channel
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.student.qparams import QParams

TABLE, SCALE = "table:", "scale:"

SMALLEST_SCALE = 0.1
"""Share of a channel's first scale that it never falls below."""


class CodebookTables:
    """The trained centroids and scales of all codebooks, and their chain rule.

    Args:
        plan: the plan.
        start: the quantization parameters to start from.

    Attributes:
        values: by key, the centroids of each weight divided by the unit, float32 (K,), and its
            scales divided by the first ones, float32 (channels,) or ().
        units: the unit of the centroids and the first scales, by key.
    """

    group = "codebooks"

    def __init__(self, plan: Plan, start: QParams) -> None:
        self._layers = {s.weight: s for s in plan.product_layers() if s.codebook is not None}
        self._start = {weight: start.codebooks[weight] for weight in self._layers}
        self._units = {w: _unit(self._start[w], s) for w, s in self._layers.items()}
        self._scaled = [
            weight
            for weight, spec in self._layers.items()
            if spec.has_scale(integer=self._start[weight].quantizer.integer is not None)
        ]
        self.values = {
            TABLE + weight: (book.centroids / self._units[weight]).astype(np.float32)
            for weight, book in self._start.items()
        }
        for weight in self._scaled:
            self.values[SCALE + weight] = np.ones_like(self._start[weight].scale)
        self.units: dict[str, FloatArray | np.float32] = {
            **{TABLE + weight: unit for weight, unit in self._units.items()},
            **{SCALE + weight: self._start[weight].scale for weight in self._scaled},
        }

    def project(self) -> None:
        """Clip int8 centroids to their range and keep scales positive, in place."""
        for weight, book in self._start.items():
            if book.quantizer.integer:
                value = self.values[TABLE + weight]
                np.clip(value, -1, 1, out=value)
        for weight in self._scaled:
            value = self.values[SCALE + weight]
            np.maximum(value, np.float32(SMALLEST_SCALE), out=value)

    def qparams(self, base: QParams) -> QParams:
        """The quantization parameters with the trained codebooks."""
        return base.with_codebooks({weight: self._codebook(weight) for weight in self._layers})

    def _codebook(self, weight: str) -> Codebook:
        book, real = self._start[weight], self.values[TABLE + weight] * self._units[weight]
        scale = self._scale(weight)
        if integer := book.quantizer.integer:
            return replace(book, centroids=np.rint(real).astype(integer), scale=scale)
        return replace(book, centroids=real.astype(np.float32), scale=scale)

    def _scale(self, weight: str) -> FloatArray:
        scale = self._start[weight].scale
        if weight not in self._scaled:
            return scale
        return np.asarray(scale * self.values[SCALE + weight], np.float32)

    def parameter_names(self) -> list[str]:
        """The student's inputs whose gradients are needed."""
        return list(self._layers)

    def gradients(self, found: Mapping[str, np.ndarray], now: QParams) -> dict[str, np.ndarray]:
        """dL/d value by key, from dL/dW by weight."""
        result = {}
        for weight, spec in self._layers.items():
            book, rank = self._codebook(weight), self._start[weight].indices.ndim
            scaled = found[weight] * per_channel(book.scale, rank, spec.axis)
            total = np.bincount(book.indices.ravel(), scaled.ravel(), book.centroids.size)
            result[TABLE + weight] = np.asarray(total * self._units[weight], np.float32)
            if weight in self._scaled:
                products = found[weight] * book.centroids.astype(np.float32)[book.indices]
                axes = tuple(i for i in range(rank) if i != spec.axis)
                sums = products.sum(axis=axes, dtype=np.float64)
                result[SCALE + weight] = np.asarray(sums * self._start[weight].scale, np.float32)
        return result


def _unit(book: Codebook, spec: LayerSpec) -> np.float32:
    if book.quantizer.integer:
        return np.float32(spec.centroid_max)
    return np.float32(max(float(np.abs(book.centroids).max()), 1e-30))
