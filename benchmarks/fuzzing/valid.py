"""Valid models with samples that fit them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fuzzing.architectures import ARCHITECTURES
from fuzzing.graph_writer import GraphWriter

BATCHES: tuple[int | str | None, ...] = ("N", "batch", None, 1, 4)
BATCH_ODDS = (0.5, 0.2, 0.1, 0.1, 0.1)
ROWS = 64
"""Samples in a file; fixed batches divide it."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Valid:
    """A model that ONNX Runtime runs.

    Attributes:
        kind: its architecture.
        proto: the model.
        samples: arrays by input name, `ROWS` samples each, to calibrate with.
        fresh: others of the same kind, to measure with: as many as one run takes.
    """

    kind: str
    proto: onnx.ModelProto
    samples: Arrays
    fresh: Arrays


def valid_model(rng: np.random.Generator) -> Valid:
    """A random model of a random architecture."""
    kind = str(rng.choice(list(ARCHITECTURES)))
    opset = int(rng.integers(11, 22))
    batch = BATCHES[rng.choice(len(BATCHES), p=BATCH_ODDS)]
    writer = GraphWriter(rng, opset, batch)
    ARCHITECTURES[kind](writer)
    uniform = bool(rng.random() < 0.3)
    feeds = [_arrays(writer, rng, rows, uniform) for rows in (ROWS, _rows(batch))]
    return Valid(kind, writer.model(), *feeds)


def _rows(batch: int | str | None) -> int:
    return batch if isinstance(batch, int) else ROWS


def _arrays(writer: GraphWriter, rng: np.random.Generator, rows: int, uniform: bool) -> Arrays:
    arrays = {}
    for name, (shape, tokens) in writer.takes.items():
        size = (rows, *shape)
        if tokens is not None:
            arrays[name] = rng.integers(0, tokens, size)
        else:
            values = rng.uniform(0, 1, size) if uniform else rng.normal(0, 1, size)
            arrays[name] = values.astype(np.float32)
    return arrays


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays as `.npz`, whatever their names are."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
