"""Samples from image files and image arrays; broken files are left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from onnxq.data.arrays import InputSpec, check_batch, fixed_batch, preferred, shape_text
from onnxq.data.pixels import (
    FULL_8,
    FULL_16,
    Stored,
    check_peak,
    from_floats,
    probe_image,
    read_pixels,
    with_channels,
)
from onnxq.data.preprocess import Preprocess
from onnxq.errors import DataError
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import Arrays

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode; Pillow lets go of the interpreter's lock while it does."""

IMAGE_TYPES = tuple(map(np.dtype, ("uint8", "uint16", "float16", "float32", "float64")))
"""Types of an array of images."""

AHEAD = 2 * DECODERS
"""Images in work at any time."""

KEPT_BYTES = 80 * 2**20
"""Bytes of pixels that are kept at most; images beyond them are decoded each time."""


@dataclass(frozen=True)
class ImageInput:
    """The model's input for images, with its preprocessing.

    Attributes:
        spec: the input.
        preprocess: with one mean and std for each of its channels.
        height: None where it is free.
        width: None where it is free.
    """

    spec: InputSpec
    preprocess: Preprocess
    height: int | None
    width: int | None

    @property
    def batch(self) -> int | None:
        """The only batch size that the model takes; None where it is free."""
        return fixed_batch([self.spec])

    def size_after(self, height: int, width: int, where: str) -> tuple[int, int]:
        """Height and width of an image after preprocessing.

        Raises:
            DataError: they are not those of the model's input.
        """
        found = self.preprocess.size_after(height, width)
        crop = self.preprocess.crop
        wanted = (self.height or crop or found[0], self.width or crop or found[1])
        if found != wanted:
            after = "" if found == (height, width) else f", {found[0]}×{found[1]} preprocessed"
            raise DataError(
                f"The image '{where}' is {height}×{width} (height×width){after}; the model's "
                f"input '{self.spec.name}' takes {wanted[0]}×{wanted[1]}: "
                "give --resize and --crop."
            )
        return found


def image_input(
    inputs: Sequence[InputSpec], preprocess: Preprocess | None, path: Path
) -> ImageInput:
    """The model's only input as an `ImageInput`.

    Raises:
        DataError: it can't take images, or the preprocessing is missing or does not fit.
    """
    spec = inputs[0]
    if len(inputs) > 1 or len(spec.shape) != 4 or not spec.is_float:
        listed = ", ".join(f"'{each.name}' {each}" for each in inputs)
        raise DataError(
            f"'{path}' holds images but the model takes {listed}; expected one float input of "
            "4 dimensions: give .npy or .npz files instead."
        )
    if preprocess is None:
        raise DataError(
            f"'{path}' holds images and nothing says how to preprocess them for the model's "
            f"input '{spec.name}'; give --mean and --std (or --preprocess FILE)."
        )
    channel_axis = 1 if preprocess.layout == "nchw" else 3
    channels = spec.shape[channel_axis] or preprocess.channels
    if channels not in (1, 3):
        raise _channels_error(spec, channel_axis, preprocess)
    height, width = (spec.shape[i] for i in (1, 2, 3) if i != channel_axis)
    return ImageInput(spec, preprocess.for_channels(channels), height, width)


def _channels_error(spec: InputSpec, channel_axis: int, preprocess: Preprocess) -> DataError:
    other = "nhwc" if preprocess.layout == "nchw" else "nchw"
    fits_other = spec.shape[4 - channel_axis] in (1, 3)
    return DataError(
        f"The model's input '{spec.name}' is {spec}, with {spec.shape[channel_axis]} channels in "
        f"the layout '{preprocess.layout}'; expected 1 or 3: "
        + (f"give --layout {other}." if fits_other else "give .npy or .npz files instead.")
    )


class _Decoder:
    """Decodes image files, and keeps the pixels of as many as there is memory for.

    Args:
        paths: of the files.
        target: the input that they are for.
    """

    def __init__(self, paths: Sequence[Path], target: ImageInput) -> None:
        self._paths, self._target = paths, target
        self._kept: dict[int, np.ndarray] = {}
        self._room, self._lock = KEPT_BYTES, Lock()

    def image(self, place: int) -> np.ndarray:
        """One image as the model takes it, without a batch dimension; threads may call this."""
        pixels = self._kept.get(place)
        if pixels is None:
            pixels = self._decoded(self._paths[place])
            with self._lock:
                if place not in self._kept and pixels.nbytes <= self._room:
                    self._kept[place] = pixels
                    self._room -= pixels.nbytes
        target = self._target
        return target.preprocess.normalise(pixels).astype(target.spec.dtype, copy=False)

    def _decoded(self, path: Path) -> np.ndarray:
        """Pixels of the size that the model takes, `(height, width, channels)`."""
        try:
            with Image.open(path) as image:
                pixels = self._target.preprocess.pixels(image, path)
        except OSError as error:
            raise DataError(f"The image '{path}' can no longer be read: {error}.") from error
        # A copy: a view would keep what was cropped away.
        return pixels.copy()

    def read(self, places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        """Batches of images, decoded by a few threads a little ahead of their use."""
        pending: deque[Future[np.ndarray]] = deque()
        batches, ahead = tee(places)
        waiting = (int(place) for rows in ahead for place in rows)
        executor = ThreadPoolExecutor(DECODERS)

        def next_image() -> np.ndarray:
            while len(pending) < AHEAD and (place := next(waiting, None)) is not None:
                pending.append(executor.submit(self.image, place))
            return pending.popleft().result()

        try:
            for rows in batches:
                yield {self._target.spec.name: _stack(next_image, len(rows))}
        finally:
            executor.shutdown(cancel_futures=True)


def _stack(next_image: Callable[[], np.ndarray], count: int) -> np.ndarray:
    """The next images as one batch; each image is released once it is copied."""
    first = next_image()
    batch = np.empty((count, *first.shape), first.dtype)
    batch[0] = first
    for row in batch[1:]:
        row[...] = next_image()
    return batch


def _read_array(
    images: np.ndarray,
    target: ImageInput,
    size: tuple[int, int],
    places: Iterable[np.ndarray],
) -> Iterator[Arrays]:
    """Images of an array, preprocessed.

    Args:
        images: `(samples, height, width, channels)`, RGB or grey, uint8, uint16, or floats from 0
            to 1; a fourth channel is alpha, which is ignored.
        target: the input that they are for.
        size: height and width after preprocessing.
        places: along the first axis.
    """
    spec, preprocess = target.spec, target.preprocess
    fits = images.shape[1:] == (*size, preprocess.channels) and images.dtype == np.uint8
    for rows in places:
        pixels = images[rows]
        if not fits:
            pixels = np.stack([_fitted(each, preprocess) for each in pixels])
        yield {spec.name: preprocess.normalise(pixels).astype(spec.dtype, copy=False)}


def _fitted(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """One image with the channels and the size that the model takes."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return preprocess.fit(read_pixels(image, preprocess.channels, ""))
    scale = FULL_8 / FULL_16 if pixels.dtype == np.uint16 else FULL_8
    values = pixels[..., :3].astype(np.float32) * np.float32(scale)
    return preprocess.fit(with_channels(values, preprocess.channels))


def open_image_array(images: np.ndarray, target: ImageInput, path: Path) -> Samples:
    """The images in an array.

    Raises:
        DataError: the array is not one of images, or their size does not fit the model.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype not in IMAGE_TYPES or images.shape[3] not in (1, 3, 4):
        raise DataError(
            f"The array 'images' in '{path}' is {images.dtype.name} {shape_text(images.shape)}; "
            "expected uint8 (N, height, width, 1 or 3), uint16, or floats from 0 to 1."
        )
    if not images.size:
        raise DataError(f"The array 'images' in '{path}' is empty; expected at least one image.")
    what = f"The array 'images' in '{path}'"
    if images.dtype == np.uint16:
        check_peak(float(images.max()) / FULL_16, f"The images of '{path}'")
    elif images.dtype != np.uint8:
        for each in images:
            from_floats(each, what)
    check_batch(len(images), target.batch, path)
    size = target.size_after(images.shape[1], images.shape[2], str(path))
    read = partial(_read_array, images, target, size)
    return Samples(read, np.arange(len(images)), target.batch)


def open_image_files(
    paths: Sequence[Path], target: ImageInput, limit: int | None, seed: int, folder: Path
) -> Samples:
    """At most `limit` readable images; broken ones are replaced by others.

    Raises:
        DataError: none is readable, a size does not fit the model, or the scale of the values is
            unknown.
    """
    wanted = min(limit or len(paths), len(paths))
    order = preferred(len(paths), wanted, seed)
    kept: list[int] = []
    broken: list[tuple[int, str]] = []
    sizes: dict[tuple[int, int], Path] = {}
    found: dict[int, Stored] = {}
    while len(kept) < wanted and order:
        now, order = order[: wanted - len(kept)], order[wanted - len(kept) :]
        for index, image in zip(now, _probe_all([paths[i] for i in now]), strict=True):
            if isinstance(image, str):
                broken.append((index, image))
                continue
            size = target.size_after(image.height, image.width, str(paths[index]))
            sizes.setdefault(size, paths[index])
            kept.append(index)
            found[index] = image
    if not kept:
        first, reason = min(broken)
        raise DataError(
            f"None of the {len(broken)} images in '{folder}' can be read; the first one, "
            f"'{paths[first]}', is broken ({reason}); "
            "give a folder of PNG or JPEG files."
        )
    _check_one_size(sizes, target)
    check_batch(len(kept), target.batch, folder)
    _check_depth(found, paths)
    skipped = [str(paths[i]) for i, _ in sorted(broken)]
    notes = _notes_on_pages(found, paths)
    decoder = _Decoder([paths[i] for i in sorted(kept)], target)
    return Samples(decoder.read, np.arange(len(kept)), target.batch, skipped, notes)


def _check_depth(found: Mapping[int, Stored], paths: Sequence[Path]) -> None:
    """Raises DataError where all 16-bit images are so dark that they may have fewer bits."""
    peaks = {index: image.peak for index, image in found.items() if image.peak is not None}
    if peaks:
        brightest = max(peaks, key=lambda index: peaks[index])
        check_peak(peaks[brightest], f"The images like '{paths[brightest]}'")


def _notes_on_pages(found: Mapping[int, Stored], paths: Sequence[Path]) -> list[str]:
    several = [index for index in sorted(found) if found[index].pages > 1]
    if not several:
        return []
    first = several[0]
    files = "1 file holds" if len(several) == 1 else f"{len(several)} files hold"
    return [
        f"{files} several images, of which the first alone is used: '{paths[first]}' has "
        f"{found[first].pages}"
    ]


def _probe_all(paths: Sequence[Path]) -> Iterator[Stored | str]:
    with ThreadPoolExecutor(DECODERS) as executor:
        yield from executor.map(_probe, paths)


def _probe(path: Path) -> Stored | str:
    """The properties of a readable image, or the reason why it is not readable."""
    try:
        return probe_image(path)
    except DataError:
        raise
    # A decoder raises whatever it stumbles on in a broken file.
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
        return (
            text.replace(f" file '{path}'", "").replace(str(path), path.name)
            or type(error).__name__
        )


def _check_one_size(sizes: dict[tuple[int, int], Path], target: ImageInput) -> None:
    """Raises DataError where images of several sizes can't share a batch."""
    if len(sizes) > 1 and target.batch != 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise DataError(
            f"The image '{first}' is {one[0]}×{one[1]} and '{second}' is {other[0]}×{other[1]} "
            "(height×width); expected one size for all: give --resize and --crop."
        )
