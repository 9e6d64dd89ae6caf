"""Feeds for comparing the outputs of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.load.interface import input_specs, random_feeds
from onnxq.runtime.session import Arrays, Feeds

CheckFeeds = Callable[[int], Feeds] | Sequence[Feeds] | None
"""A function from the batch size to a feed, feeds themselves, or None for random ones."""


def given_feeds(model: ir.Model, source: CheckFeeds, batch: int) -> list[Feeds]:
    """The feeds to check a model on.

    Args:
        model: the model, for the inputs of random feeds.
        source: where the feeds come from.
        batch: batch size to ask a function for.
    """
    if source is None:
        return [random_feeds(input_specs(model), batch)]
    return [source(batch)] if callable(source) else list(source)


def pieces_of(feeds: Sequence[Feeds], size: int) -> list[Feeds]:
    """The same feeds cut into batches of `size`, where they can be cut."""
    pieces: list[Feeds] = []
    for feed in feeds:
        parts = split_batch(feed, size)
        pieces.extend([feed] if parts is None else parts)
    return pieces


def split_batch(feeds: Feeds, size: int) -> list[Arrays] | None:
    """Feeds of `size` samples each; None where the arrays can't be cut along one batch."""
    if not feeds or any(array.ndim == 0 for array in feeds.values()):
        return None
    lengths = {array.shape[0] for array in feeds.values()}
    if len(lengths) != 1 or (length := lengths.pop()) % size:
        return None
    return [
        {name: array[start : start + size] for name, array in feeds.items()}
        for start in range(0, length, size)
    ]


def join_batches(feeds: Sequence[Feeds]) -> Arrays:
    """One feed of all samples."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def vary(feeds: Feeds) -> Arrays:
    """Another feed of the same dtypes: every array reversed, floats a tenth as large."""
    return {name: _varied(array) for name, array in feeds.items()}


def _varied(array: np.ndarray) -> np.ndarray:
    backwards = np.ascontiguousarray(array.reshape(-1)[::-1].reshape(array.shape))
    is_float = np.issubdtype(array.dtype, np.floating)
    return (backwards * 0.1).astype(array.dtype) if is_float else backwards
