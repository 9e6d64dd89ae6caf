"""What a source of samples does, and how some of its samples are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from onnxq.data.arrays import Arrays
from onnxq.errors import DataError


class Source(Protocol):
    """Where samples come from.

    Attributes:
        skipped: files that were left out because they are broken.
        notes: sentences for the user on what was read.
        batch: the only batch size that the model takes; None where it is free. A source of
            whole feeds has 1: each "sample" is then one feed.
    """

    skipped: list[str]
    notes: list[str]
    batch: int | None

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batches(self, indices: Sequence[int], size: int) -> Iterator[Arrays]:
        """Feeds by input name, `size` samples each, in the order of the indices."""
        ...


def spread(total: int, n: int, seed: int) -> np.ndarray:
    """Positions in ascending order: one at random in each of n equal stretches of `total`."""
    edges = np.arange(n + 1) * total // n
    draws: np.ndarray = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return draws


def preferred(total: int, n: int, seed: int) -> list[int]:
    """All positions: first n that are spread evenly, then the others in random order."""
    chosen = spread(total, n, seed)
    others = np.setdiff1d(np.arange(total), chosen)
    return [*chosen.tolist(), *np.random.default_rng(seed).permutation(others).tolist()]


def check_batch(total: int, batch: int | None, path: Path) -> None:
    """Raises DataError where the samples don't fill one batch of the size the model takes."""
    needed = batch or 1
    if total < needed:
        raise DataError(
            f"'{path}' holds {total} samples; the model takes batches of {needed}: give more."
        )
