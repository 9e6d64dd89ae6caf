"""The samples in a folder or file, and notes on samples that are all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnxq.data.arrays import InputSpec, fixed_batch, read_arrays
from onnxq.data.files import group_files, open_array_files, open_rows
from onnxq.data.images import image_input, open_image_array, open_image_files
from onnxq.data.preprocess import Preprocess
from onnxq.errors import DataError
from onnxq.runtime.dataset import Samples, spread
from onnxq.runtime.session import Arrays

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
)
ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".pb"})


def open_samples(
    path: Path,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    limit: int | None = 512,
    seed: int = 0,
) -> Samples:
    """The samples in a folder or a file.

    Args:
        path: a folder of images, a folder of `.npy`, `.npz` or `.pb` files, or one `.npz` or
            `.npy`.
        inputs: of the model.
        preprocess: how an image becomes the model's input; arrays are fed unchanged.
        limit: most samples to use, at least one batch; None means all.
        seed: of the choice among more than `limit`.

    Raises:
        DataError: there are no samples, or they don't fit the model.
    """
    path = Path(path)
    if limit is not None:
        limit = max(limit, fixed_batch(inputs) or 1)
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
) -> Samples:
    """The samples in files of one kind, images or arrays.

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
) -> Samples:
    """The samples in the arrays of one `.npz` or `.npy` file.

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
    """Whether a lone array holds images: one named 'images', or a `.npy` of uint8."""
    (name, array), *others = arrays.items() or [("", np.empty(0))]
    if others or any(spec.dtype == np.uint8 for spec in inputs):
        return False
    named = name == "images" and (array.dtype == np.uint8 or name not in {s.name for s in inputs})
    return named or (name == "" and array.dtype == np.uint8 and array.ndim in (3, 4))


HELD_OUT_OF_SEARCH = 512
"""Samples held out at least where a search looks at the drop, as far as that leaves half."""


def split_samples(
    samples: Samples, batch: int, seed: int, *, searched: bool
) -> tuple[Samples, Samples]:
    """The training slice and the held-out samples.

    Args:
        samples: all of them.
        batch: batch size of the original, where the samples' is free.
        seed: of the choice.
        searched: whether a search uses the held-out samples.
    """
    more = {"least": HELD_OUT_OF_SEARCH} if searched else {}
    return samples.split(seed=seed, batch=samples.batch or batch, **more)


def notes_on_samples(samples: Samples) -> list[str]:
    """Notes for the user on the samples."""
    notes = []
    if samples.skipped:
        notes.append(
            f"{len(samples.skipped)} unreadable files were left out, "
            f"the first is '{samples.skipped[0]}'"
        )
    return [*notes, *samples.notes, *notes_on_sameness(samples)]


MOST = 64
"""Samples looked at, at most: nearly always the second one differs from the first."""


def notes_on_sameness(samples: Samples) -> list[str]:
    """Notes for the user where all samples are equal, and so give no ranges; empty otherwise."""
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
    """The samples, also where the model takes several at once."""
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
    """Whether all floats are equal, or those in each channel of images, whichever axis that is."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    if array.ndim != 4:
        return bool(np.all(array == array.flat[0]))
    return bool(np.all(array == array[:, :, :1, :1]) or np.all(array == array[:, :1, :1, :]))
