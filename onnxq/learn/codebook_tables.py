"""Train the centroids of codebooks; the indices stay as they are.

    dL/dc_k = sum over the weights i with index k of  dL/dW_i scale_i

Trained is c / unit, with unit the largest centroid, or the largest code where centroids are
int8 codes that are rounded straight-through: of the order of 1, as threshold scales are, so
that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from onnxq.numerics.codebook import Codebook
from onnxq.numerics.qparams import FloatArray, per_channel, weight_quant_max
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.rewrite.quantizers import Quantizers

TABLE = "table:"


class CodebookTables:
    """The trained tables of all codebooks, and their chain rule.

    Args:
        plan: the plan.
        start: the numbers to start from.

    Attributes:
        values: the table of each weight in its unit, float32 (K,), by key.
    """

    def __init__(self, plan: Plan, start: Quantizers) -> None:
        self._layers = {s.weight: s for s in plan.layers.values() if s.codebook is not None}
        self._start = {weight: start.codebooks[weight] for weight in self._layers}
        self._units = {w: _unit(self._start[w], s) for w, s in self._layers.items()}
        self.values = {
            TABLE + weight: (book.centroids / self._units[weight]).astype(np.float32)
            for weight, book in self._start.items()
        }

    @property
    def weights(self) -> list[str]:
        """The weights whose gradients are wanted."""
        return list(self._layers)

    def project(self) -> None:
        """Keep int8 codes in their range, in place."""
        for weight, book in self._start.items():
            if book.centroids.dtype == np.int8:
                value = self.values[TABLE + weight]
                np.clip(value, -1, 1, out=value)

    def codebooks(self) -> dict[str, Codebook]:
        """The codebooks that the values stand for."""
        return {weight: self._codebook(weight) for weight in self._layers}

    def _codebook(self, weight: str) -> Codebook:
        book, real = self._start[weight], self.values[TABLE + weight] * self._units[weight]
        if book.centroids.dtype == np.int8:
            return replace(book, centroids=np.rint(real).astype(np.int8))
        return replace(book, centroids=real.astype(np.float32))

    def gradients(self, weight_gradient: Callable[[str], FloatArray]) -> dict[str, np.ndarray]:
        """dL/d value by key, from dL/dW by weight."""
        result = {}
        for weight, spec in self._layers.items():
            book = self._start[weight]
            scaled = weight_gradient(weight) * per_channel(book.scale, book.indices.ndim, spec.axis)
            total = np.bincount(book.indices.ravel(), scaled.ravel(), book.centroids.size)
            result[TABLE + weight] = np.asarray(total * self._units[weight], np.float32)
        return result


def restored(
    codebooks: Mapping[str, Codebook], tables: Mapping[str, np.ndarray]
) -> dict[str, Codebook]:
    """Codebooks with other centroids, by weight."""
    return {
        weight: replace(book, centroids=tables.get(weight, book.centroids))
        for weight, book in codebooks.items()
    }


def _unit(book: Codebook, spec: LayerSpec) -> np.float32:
    if book.centroids.dtype == np.int8:
        return np.float32(weight_quant_max(spec.num_bits))
    return np.float32(max(float(np.abs(book.centroids).max()), 1e-30))
