"""Samples.

A fixed list of them, found in a path and read as a stream of batches as often as needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.data.arrays import Arrays, Source, read_arrays, spread
from onnxq.data.files import group_files, open_array_files, open_rows
from onnxq.data.images import image_input, open_image_array, open_image_files
from onnxq.data.inputs import InputSpec, fixed_batch
from onnxq.data.preprocess import Preprocess
from onnxq.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
)
ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".pb"})


def open_source(
    path: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None,
    seed: int,
) -> Source:
    """The source of the samples in a folder or a file.

    Raises:
        DataError: there are no samples there, or they don't fit the model.
    """
    if not inputs:
        raise DataError(f"'{path}' can't be fed: the model has no inputs.")
    if path.is_dir():
        return open_files(find_files(path), inputs, preprocess, limit, seed, path)
    if not path.is_file():
        raise DataError(f"The data '{path}' does not exist; give a folder or a file of samples.")
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return open_arrays(read_arrays(path), inputs, preprocess, limit, seed, path)
    if suffix in IMAGE_SUFFIXES | ARRAY_SUFFIXES:
        return open_files([path], inputs, preprocess, limit, seed, path)
    raise DataError(
        f"The data '{path}' is neither a folder nor a .npz or .npy file; expected one of these."
    )


def find_files(folder: Path) -> list[Path]:
    """The images and arrays in a folder at any depth, sorted; hidden files are left out.

    Raises:
        DataError: there are none, or both kinds.
    """
    suffixes = IMAGE_SUFFIXES | ARRAY_SUFFIXES
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not paths:
        raise DataError(
            f"The folder '{folder}' holds no samples; expected images "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) or arrays "
            f"({', '.join(sorted(ARRAY_SUFFIXES))})."
        )
    return paths


def open_files(
    paths: Sequence[Path],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None,
    seed: int,
    folder: Path,
) -> Source:
    """The source of samples in files of one kind, images or arrays.

    Raises:
        DataError: the files are of both kinds, or do not fit the model.
    """
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if images and len(images) < len(paths):
        other = next(path for path in paths if path not in images)
        raise DataError(
            f"'{folder}' holds images ('{images[0]}') and arrays ('{other}'); "
            "expected one kind: give the folder of one of them."
        )
    if images:
        target = image_input(inputs, preprocess, folder)
        return open_image_files(images, target, limit, seed, folder)
    return open_array_files(group_files(paths), inputs, folder, limit, seed)


def open_arrays(
    arrays: Arrays,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None,
    seed: int,
    path: Path,
) -> Source:
    """The source of samples in the arrays of one `.npz` or `.npy` file.

    Raises:
        DataError: the arrays do not fit the model.
    """
    if "labels" not in {spec.name for spec in inputs}:
        arrays = {name: array for name, array in arrays.items() if name != "labels"}
    if _are_images(arrays, inputs):
        (images,) = arrays.values()
        if limit is not None and len(images) > limit:
            images = images[spread(len(images), limit, seed)]
        return open_image_array(images, image_input(inputs, preprocess, path), path)
    rows = open_rows(arrays, inputs, path, limit, seed)
    return rows or open_array_files([(path,)], inputs, path, limit, seed)


def _are_images(arrays: Arrays, inputs: Sequence[InputSpec]) -> bool:
    """Whether this is a lone array of pixels: named 'images', or a `.npy` of uint8."""
    (name, array), *others = arrays.items() or [("", np.empty(0))]
    if others or any(spec.dtype == np.uint8 for spec in inputs):
        return False
    named = name == "images" and (array.dtype == np.uint8 or name not in {s.name for s in inputs})
    return named or (name == "" and array.dtype == np.uint8 and array.ndim in (3, 4))


class Samples:
    """A fixed sequence of samples; only their indices are held in memory.

    Args:
        source: what reads them.
        indices: which ones, in which order; None means all.
        batch: the only batch size to run them in; None leaves it to the source.
    """

    def __init__(
        self, source: Source, indices: np.ndarray | None = None, batch: int | None = None
    ) -> None:
        self._source, self._batch = source, batch
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def skipped(self) -> list[str]:
        """Files that were left out because they are broken."""
        return self._source.skipped

    @property
    def notes(self) -> list[str]:
        """Sentences for the user on what was read."""
        return self._source.notes

    @property
    def batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        return self._source.batch or self._batch

    def in_batches_of(self, size: int | None) -> Samples:
        """The same samples for a model that takes this batch alone; whole feeds stay whole.

        Args:
            size: samples in a batch; None changes nothing.
        """
        return Samples(self._source, self.indices, size or self._batch)

    def batches(self, size: int) -> Iterator[Arrays]:
        """Feeds by input name, always in the same order; the last one may be short.

        Where the model fixes its batch, that is the size whatever was asked, and samples
        that don't fill a last batch are left out.
        """
        indices: Sequence[int] = self.indices.tolist()
        if self.batch is not None:
            size = self.batch
            indices = indices[: len(indices) // size * size]
        return self._source.batches(indices, size)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Samples:
        """The samples at these positions, in this order."""
        return Samples(self._source, self.indices[np.asarray(indices, np.int64)], self._batch)

    def take(self, n: int, seed: int = 0) -> Samples:
        """At most n samples, or a whole batch: one drawn from each of n equal stretches, in order.

        Files are sorted by name, often one class after another: a draw from each stretch
        takes as many from each.
        """
        n = max(n, self.batch or 1)
        return self if n >= len(self) else self.subset(spread(len(self), n, seed))

    def split(
        self, fraction: float = 0.2, least: int = 64, seed: int = 0, batch: int = 1
    ) -> tuple[Samples, Samples]:
        """Two disjoint random parts, each in the original order: to learn, and held out.

        Args:
            fraction: the share held out.
            least: the smallest number held out, as far as that leaves half to learn from.
            seed: of the choice.
            batch: the samples that a batch of the original has: no part is smaller.

        Returns:
            (train, held out); those that don't fill two batches are in both.
        """
        if len(self) < 2 * batch:
            return self, self
        count = max(round(fraction * len(self)), min(least, len(self) // 2), 1)
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(-(-count // batch) * batch, len(self) - batch)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))


def open_samples(
    path: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None = 512,
    seed: int = 0,
) -> Samples:
    """The samples in a folder or a file.

    Args:
        path: a folder of images, a folder of `.npy`, `.npz` or `.pb` files, or one `.npz`
            or `.npy`.
        inputs: what the model takes.
        preprocess: how an image becomes the model's input; arrays are fed as they are.
        limit: how many samples are used at most, or a whole batch; None means all.
        seed: of the choice among more than `limit`.

    Raises:
        DataError: there are no samples there, or they don't fit the model.
    """
    if limit is not None:
        limit = max(limit, fixed_batch(inputs) or 1)
    return Samples(open_source(Path(path), inputs, preprocess, limit, seed))


MOST = 64
"""Samples looked at, at most: nearly always the second one differs from the first."""


def notes_on_sameness(samples: Samples) -> list[str]:
    """Sentences for the user where samples can't tell ranges; nothing where two differ."""
    first: Arrays | None = None
    count, alike, flat = 0, True, True
    for sample in _one_by_one(samples.take(MOST)):
        first = first or sample
        count += 1
        alike = alike and _equal(first, sample)
        flat = flat and all(_is_flat(array) for array in sample.values())
        if not alike and not flat:
            return []
    if alike and count > 1:
        return [f"the first {count} samples are all the same; check what --data names"]
    if flat and count:
        return ["each sample is one value throughout, as a black image is; check what --data names"]
    return []


def _one_by_one(samples: Samples) -> Iterator[Arrays]:
    """The samples, where the model takes several at once too."""
    for feeds in samples.batches(1):
        sizes = {len(array) if array.ndim else 0 for array in feeds.values()}
        if samples.batch is None or len(sizes) > 1 or sizes <= {0, 1}:
            yield feeds
            continue
        for i in range(sizes.pop()):
            yield {name: array[i : i + 1] for name, array in feeds.items()}


def _equal(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _is_flat(array: np.ndarray) -> bool:
    """Whether floats are all the same, of images in each channel, whichever axis that is."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    if array.ndim != 4:
        return bool(np.all(array == array.flat[0]))
    return bool(np.all(array == array[:, :, :1, :1]) or np.all(array == array[:, :1, :1, :]))
