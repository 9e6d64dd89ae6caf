"""Metrics that fit what a model's outputs mean, as sums over samples.

| task | metrics |
|---|---|
| classes | agreement and drop, of `onnxq.verify.outputs` |
| detection | recall and precision of scores over a threshold, error of the boxes found |
| embeddings | mean cosine of each output |
| sequences | share of the strings kept: the likeliest symbols, repeats and blanks left out |
| dense | IoU of masks, PSNR of maps |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from onnxq.graph.meanings import Kind, Meaning
from onnxq.numerics.distances import Noise

TASKS: dict[Kind, str] = {
    "scores": "detection",
    "sequences": "sequences",
    "mask": "dense",
    "image": "dense",
    "classes": "classes",
    "embeddings": "embeddings",
    "other": "other",
}
"""The task of a model by what its outputs mean, that which counts first before the others."""

THRESHOLD = 0.1
"""Score over which a box counts as found."""

MASK_THRESHOLD = 0.5


def find_task(meanings: Mapping[str, Meaning]) -> str:
    """The task of a model with these outputs."""
    kinds = {meaning.kind for meaning in meanings.values()}
    return next((task for kind, task in TASKS.items() if kind in kinds), "other")


class TaskSums:
    """The metrics of the outputs that mean something, added up batch by batch.

    Args:
        meanings: of the outputs by name.
    """

    def __init__(self, meanings: Mapping[str, Meaning]) -> None:
        self._meanings = meanings
        self._sums: dict[str, _Sums] = {}

    def add(self, name: str, y: np.ndarray, y_hat: np.ndarray) -> None:
        """Add one batch of an output: the original's and the candidate's, of one shape."""
        meaning = self._meanings.get(name)
        if meaning is None or meaning.kind not in _KINDS or not y.size:
            return
        # The scores of a detector are spread over outputs, and so may sequences be.
        key = meaning.kind if meaning.kind in ("scores", "sequences") else name
        self._sums.setdefault(key, _KINDS[meaning.kind]()).add(y, y_hat, meaning)

    def metrics(self) -> dict[str, float]:
        """Values by a name in words."""
        found: dict[str, float] = {}
        for key, sums in self._sums.items():
            for text, value in sums.metrics().items():
                found[text.format(name=key)] = value
        return found


class _Sums(Protocol):
    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None: ...

    def metrics(self) -> dict[str, float]: ...


class _Cosine:
    """The mean cosine of vectors along the last axis; those that are all zero don't count."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None:
        rows, others = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (y, y_hat))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
        counted = np.linalg.norm(rows, axis=1) > 0
        products = (rows * others).sum(axis=1)[counted]
        self._total += float((products / np.maximum(lengths[counted], 1e-30)).sum())
        self._count += int(counted.sum())

    def metrics(self) -> dict[str, float]:
        return {"cosine of {name}": self._total / self._count} if self._count else {}


class _Scores:
    """Scores over the threshold in both models, and the mean error of the boxes with one."""

    def __init__(self) -> None:
        self._both = self._theirs = self._ours = self._numbers = 0
        self._error = 0.0

    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None:
        rows, others = (np.moveaxis(each, meaning.axis, -1) for each in (y, y_hat))
        first, last = meaning.scores or (0, rows.shape[-1])
        found, again = (each[..., first:last] > THRESHOLD for each in (rows, others))
        self._both += int((found & again).sum())
        self._theirs += int(found.sum())
        self._ours += int(again.sum())
        boxes = [i for i in range(rows.shape[-1]) if not first <= i < last]
        errors = np.abs(rows[..., boxes] - others[..., boxes])[found.any(axis=-1)]
        self._error += float(errors.sum(dtype=np.float64))
        self._numbers += errors.size

    def metrics(self) -> dict[str, float]:
        found = {}
        for text, count in (("recall", self._theirs), ("precision", self._ours)):
            if count:
                found[f"{text} of scores over {THRESHOLD}"] = self._both / count
        if self._numbers:
            found["mean error of the boxes found"] = self._error / self._numbers
        return found


class _Sequences:
    """Sequences of the likeliest symbols: repeats count once, and the blank not at all.

    The blank is the first or the last symbol, if it is the likeliest one most often.
    """

    def __init__(self) -> None:
        self._kept = self._count = 0

    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None:
        symbols, others = (
            np.moveaxis(each.argmax(axis=-1), meaning.axis, 0) for each in (y, y_hat)
        )
        commonest = int(np.bincount(symbols.reshape(-1)).argmax())
        blank = commonest if commonest in (0, y.shape[-1] - 1) else -1
        for row, other in zip(symbols, others, strict=True):
            self._kept += _string(row, blank) == _string(other, blank)
            self._count += 1

    def metrics(self) -> dict[str, float]:
        return {"strings kept": self._kept / self._count}


def _string(symbols: np.ndarray, blank: int) -> list[int]:
    changes = np.append(True, symbols[1:] != symbols[:-1])
    return [int(each) for each in symbols[changes] if each != blank]


class _Mask:
    """Intersection over union of masks: values over a half, or the likeliest of some classes."""

    def __init__(self) -> None:
        self._both = self._either = 0

    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None:
        masks, others = (_mask(each) for each in (y, y_hat))
        self._both += int((masks & others).sum())
        self._either += int((masks | others).sum())

    def metrics(self) -> dict[str, float]:
        return {"IoU of {name}": self._both / self._either if self._either else 1.0}


def _mask(values: np.ndarray) -> np.ndarray:
    """(N, C, H, W) bool: of several channels that sum to 1, the one with the largest value."""
    several = values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1, atol=1e-2)
    if not several:
        return np.asarray(values > MASK_THRESHOLD)
    return np.asarray(values == values.max(axis=1, keepdims=True))


class _Image:
    """Peak signal to noise ratio, the peak being the range of the original's values."""

    def __init__(self) -> None:
        self._noise, self._count = Noise(), 0
        self._lowest, self._highest = math.inf, -math.inf

    def add(self, y: np.ndarray, y_hat: np.ndarray, meaning: Meaning) -> None:
        finite = np.isfinite(y)
        if not finite.any():
            return
        self._noise.add(y, y_hat)
        self._count += int(finite.sum())
        self._lowest = min(self._lowest, float(y[finite].min()))
        self._highest = max(self._highest, float(y[finite].max()))

    def metrics(self) -> dict[str, float]:
        if not self._count or not math.isfinite(self._noise.noise):
            return {}
        peak = Noise()
        peak.signal = self._count * (self._highest - self._lowest) ** 2
        peak.noise = self._noise.noise
        return {"PSNR of {name}, dB": peak.sqnr_db()}


_KINDS: dict[Kind, type[_Sums]] = {
    "embeddings": _Cosine,
    "scores": _Scores,
    "sequences": _Sequences,
    "mask": _Mask,
    "image": _Image,
}
