"""Samples from arrays: rows of one file, rows of many files, or whole feeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from onnxq.data.arrays import (
    InputSpec,
    as_samples,
    as_taken,
    check_batch,
    check_feed,
    check_finite,
    fixed_batch,
    has_sample_axis,
    match_inputs,
    open_stack,
    preferred,
    read_arrays,
)
from onnxq.errors import DataError, UnreadableError
from onnxq.load.tensors import load_tensor
from onnxq.runtime.dataset import Samples, spread
from onnxq.runtime.session import Arrays

Group = tuple[Path, ...]
"""The files that make up one feed: one of all arrays, or a `.pb` for each input."""

Shapes = dict[str, tuple[int, ...]]
"""Of the arrays of one feed, by input name."""


class FeedFiles:
    """Files of arrays for the model's inputs.

    Attributes:
        groups: the files of each feed.
        inputs: the model's.
        skipped: files or folders that were left out.
    """

    def __init__(self, groups: Sequence[Group], inputs: Sequence[InputSpec]) -> None:
        self.groups = list(groups)
        self.inputs = inputs
        self.skipped: list[str] = []

    def arrays(self, index: int) -> Arrays:
        """The arrays of one feed by input name, as the files hold them."""
        return match_inputs(
            _read_group(self.groups[index], self.inputs), self.inputs, self.path(index)
        )

    def samples(self, index: int) -> Arrays:
        """The arrays of one feed with samples along the first axis."""
        rows = as_samples(self.arrays(index), self.inputs, self.path(index))
        assert rows is not None
        return rows

    def feed(self, index: int) -> Arrays:
        """The arrays of one feed, with a batch dimension added where a file has none."""
        arrays = self.arrays(index)
        if not has_sample_axis(self.inputs):
            return arrays
        return as_samples(arrays, self.inputs, self.path(index)) or arrays

    def read_rows(self, starts: np.ndarray, places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        """Rows of all files, one file after the other, which begin at these places."""
        for rows in places:
            owners = np.searchsorted(starts, rows, side="right") - 1
            out: Arrays = {}
            for owner in np.unique(owners):
                here = np.flatnonzero(owners == owner)
                for name, array in as_taken(self.samples(owner), self.inputs).items():
                    if name not in out:
                        out[name] = np.empty((len(rows), *array.shape[1:]), array.dtype)
                    out[name][here] = array[rows[here] - starts[owner]]
            yield out

    def read_feeds(self, places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        """Files that are fed unchanged, one after the other."""
        for (index,) in places:
            feed = as_taken(self.feed(index), self.inputs)
            yield {name: np.asarray(array) for name, array in feed.items()}

    def path(self, index: int) -> Path:
        """The file, or the folder of several, for error messages."""
        group = self.groups[index]
        return group[0] if len(group) == 1 else group[0].parent


def open_rows(
    arrays: Arrays, inputs: Sequence[InputSpec], path: Path, limit: int | None, seed: int
) -> Samples | None:
    """The samples along the first axis of arrays; None where they are one feed.

    Raises:
        DataError: an array does not fit the model, is empty, or holds NaN.
    """
    matched = match_inputs(arrays, inputs, path)
    if (stack := open_stack(matched, inputs, path, limit, seed)) is not None:
        return stack
    if not has_sample_axis(inputs):
        return None
    rows = as_samples(matched, inputs, path)
    if rows is None:
        return None
    total = len(next(iter(rows.values())))
    check_batch(total, fixed_batch(inputs), path)
    if limit is not None and total > limit:
        chosen = spread(total, limit, seed)
        rows = {name: array[chosen] for name, array in rows.items()}
    for spec in inputs:
        check_finite(rows[spec.name], spec, path)
    count = len(next(iter(rows.values())))
    return Samples(partial(read_rows, rows, inputs), np.arange(count), fixed_batch(inputs))


def read_rows(
    arrays: Arrays, inputs: Sequence[InputSpec], places: Iterable[np.ndarray]
) -> Iterator[Arrays]:
    """Rows of arrays in memory, or mapped from a file, with the dtypes of the model's inputs."""
    for rows in places:
        chosen = {name: np.asarray(array[rows]) for name, array in arrays.items()}
        yield as_taken(chosen, inputs)


def open_array_files(
    groups: Sequence[Group],
    inputs: Sequence[InputSpec],
    folder: Path,
    limit: int | None,
    seed: int,
) -> Samples:
    """The samples in files of arrays: their rows where these can share a batch.

    Every file is read once, so that a bad one is found before any work is done. A file that can't
    be read is left out, and another one takes its place where not all are needed. Files whose
    arrays differ in length hold sequences, which stay whole.

    Raises:
        DataError: no file can be read; an array is missing, does not fit the model, or holds NaN.
    """
    files = FeedFiles(groups, inputs)
    shapes = _keep_readable(files, limit, seed, folder)
    counts = [next(iter(each.values()))[0] if _same_rows(each) else None for each in shapes]
    if has_sample_axis(inputs) and _can_share_batches(shapes, counts):
        lengths = [count for count in counts if count is not None]
        check_batch(sum(lengths), fixed_batch(inputs), folder)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        read, batch = partial(files.read_rows, starts), fixed_batch(inputs)
        return Samples(read, np.arange(starts[-1]), batch, files.skipped)
    for index in range(len(files.groups)):
        check_feed(files.feed(index), inputs, files.path(index))
    return Samples(files.read_feeds, np.arange(len(files.groups)), 1, files.skipped)


def group_files(paths: Sequence[Path]) -> list[Group]:
    """Files by feed: the zoo's `input_*.pb` of one folder together, all others alone."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() == ".pb" and path.name.startswith("output_"):
            continue
        together = path.suffix.lower() == ".pb" and path.name.startswith("input_")
        groups.setdefault(path.parent if together else path, []).append(path)
    return [tuple(sorted(group, key=_number)) for group in groups.values()]


def _number(path: Path) -> tuple[int, str]:
    digits = path.stem.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else -1, path.name)


def _read_group(group: Group, inputs: Sequence[InputSpec]) -> Arrays:
    """The arrays of one feed by name; tensors without a known name are matched in order."""
    if group[0].suffix.lower() != ".pb":
        return read_arrays(group[0])
    tensors = [load_tensor(path) for path in group]
    names = {spec.name for spec in inputs}
    if {name for name, _ in tensors} != names and len(tensors) == len(inputs):
        return {spec.name: array for spec, (_, array) in zip(inputs, tensors, strict=True)}
    return dict(tensors)


def _keep_readable(files: FeedFiles, limit: int | None, seed: int, folder: Path) -> list[Shapes]:
    """The shapes of readable feeds, as many as are needed; the other files are dropped."""
    total = len(files.groups)
    wanted = min(limit or total, total)
    kept: dict[int, Shapes] = {}
    broken: dict[int, UnreadableError] = {}
    for index in preferred(total, wanted, seed):
        if len(kept) == wanted:
            break
        try:
            kept[index] = _checked_shapes(files, index)
        except UnreadableError as error:
            broken[index] = error
    if not total:
        raise DataError(
            f"The folder '{folder}' holds no arrays for the model; give one of .npy, .npz or .pb "
            "files that are named after its inputs."
        )
    if not kept:
        first = broken[min(broken)]
        if total == 1:
            raise first
        raise DataError(f"None of the {total} files in '{folder}' can be read. {first}") from first
    files.skipped = [str(files.path(index)) for index in sorted(broken)]
    files.groups = [files.groups[index] for index in sorted(kept)]
    return [kept[index] for index in sorted(kept)]


def _checked_shapes(files: FeedFiles, index: int) -> Shapes:
    arrays = files.feed(index)
    for spec in files.inputs:
        array = arrays[spec.name]
        check_finite(array, spec, files.path(index))
        if not array.size:
            raise DataError(f"The array '{spec.name}' in '{files.path(index)}' is empty.")
    return {name: array.shape for name, array in arrays.items()}


def _same_rows(shapes: Shapes) -> bool:
    return len({shape[:1] for shape in shapes.values()}) == 1 and () not in shapes.values()


def _can_share_batches(shapes: Sequence[Shapes], counts: Sequence[int | None]) -> bool:
    """Whether rows of different files are samples of one kind."""
    trailing = {tuple(shape[1:] for shape in each.values()) for each in shapes}
    equal = all(a == b for a, b in pairwise(counts[:-1]))
    last_is_short = counts[-1] is not None and counts[0] is not None and counts[-1] <= counts[0]
    return None not in counts and len(trailing) == 1 and equal and last_is_short
