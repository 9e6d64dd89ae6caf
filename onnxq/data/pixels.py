"""The pixels of an image file of any type: upright, from 0 to 255.

8 bits stay. Grey images of 16 bits and of floats from 0 to 1 keep their depth. Colours of 16 bits,
which Pillow can't hold, are read in 8. Values of unknown scale are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from onnxq.errors import DataError

FULL_16, FULL_8 = 65535, 255
"""The largest values of 16 and of 8 bits."""

DARK = 0.25
"""Share of 16 bits' range that their largest value reaches at least: what 14 bits reach."""

DEEP_GREY = "I;16"
"""What Pillow's modes of 16-bit grey begin with."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in grey, as Pillow has them."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


@dataclass(frozen=True)
class Stored:
    """Properties of an image file.

    Attributes:
        height: of the upright image.
        width: likewise.
        pages: images in the file, of which the first is read.
        peak: the largest value of a 16-bit image, as a share of its range; None for any other.
    """

    height: int
    width: int
    pages: int = 1
    peak: float | None = None


def probe_image(path: Path) -> Stored:
    """Read an image once, to check that it can be read.

    Raises:
        DataError: the scale of its values is unknown.
    """
    with Image.open(path) as image:
        deep = is_16_bit(image)
        turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
        # Pillow turns a TIFF by itself.
        height, width = image.height, image.width
        if turned and image.format != "TIFF":
            height, width = width, height
        # Photographs of some cameras hold a small copy of themselves.
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        # JPEG: all is parsed, an eighth is computed.
        image.draft(None, (1, 1))
        pixels = read_pixels(image, 3, path)
        peak = float(pixels.max(initial=0)) / FULL_8 if deep else None
        return Stored(height, width, pages, peak)


def is_16_bit(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16-bit values."""
    tiles = getattr(image, "tile", [])
    return image.mode.startswith(DEEP_GREY) or any(";16" in str(tile) for tile in tiles)


def read_pixels(image: Image.Image, channels: int, path: Path | str) -> np.ndarray:
    """The upright pixels `(height, width, channels)`, RGB or grey: uint8, or float32 from 0 to 255.

    Alpha is ignored, and only the first page is read.

    Args:
        image: just opened; it is changed.
        channels: 1 or 3.
        path: of the file, for error messages.

    Raises:
        DataError: the scale of the values is unknown.
    """
    upright(image, path)
    grey = _deep_grey(image, path)
    if grey is not None:
        return with_channels(grey[:, :, None], channels)
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode), np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Float pixels `(height, width, 1 or 3)` with so many channels; grey by ITU-R 601."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return (pixels @ GREY)[:, :, None]
    return np.repeat(pixels, channels, axis=2)


def upright(image: Image.Image, path: Path | str) -> None:
    """Load an image and rotate it in place as its EXIF data say."""
    size = image.size
    image.load()
    if image.format == "TIFF" and image.size != size:
        raise DataError(
            f"The image '{path}' is an uncompressed TIFF that its orientation turns, which can't "
            "be read; save it upright, or as PNG."
        )
    ImageOps.exif_transpose(image, in_place=True)


def _deep_grey(image: Image.Image, path: Path | str) -> np.ndarray | None:
    """A grey image of more than 8 bits as float32 from 0 to 255; None for any other."""
    if image.mode.startswith(DEEP_GREY):
        return np.asarray(image).astype(np.float32) * np.float32(FULL_8 / FULL_16)
    if image.mode == "I" and image.format == "PPM":
        # Pillow scales what a PGM holds to 16 bits.
        return np.asarray(image).astype(np.float32) * np.float32(FULL_8 / FULL_16)
    if image.mode == "I":
        raise DataError(
            f"The image '{path}' holds 32-bit integers, and nothing says what is white; save it "
            "with 8 or 16 bits, or as floats from 0 to 1."
        )
    if image.mode == "F":
        return from_floats(np.asarray(image), f"The image '{path}'")
    return None


def from_floats(values: np.ndarray, what: str) -> np.ndarray:
    """Floats from 0 to 1 as float32 from 0 to 255.

    Raises:
        DataError: values are outside that range.
    """
    low, high = (float(part) for part in (values.min(initial=0), values.max(initial=0)))
    if not np.isfinite(values).all():
        raise DataError(f"{what} holds NaN or infinity; repair or remove it.")
    if low < 0 or high > 1:
        raise DataError(
            f"{what} holds floats from {low:g} to {high:g}; expected 0 to 1: scale them, or give "
            "the model's own inputs as .npy or .npz."
        )
    return values.astype(np.float32) * np.float32(FULL_8)


def check_peak(peak: float, what: str) -> None:
    """Raises DataError where 16-bit images are so dark that they may have fewer bits.

    Args:
        peak: their largest value, as a share of the range.
        what: the images, for the error message.
    """
    if 0 < peak < DARK:
        raise DataError(
            f"{what} have 16 bits and hold no value above {round(peak * FULL_16):,} of "
            f"{FULL_16:,}, as those of 10, 12 or 14 bits do; save them over the full range, or as "
            "floats from 0 to 1."
        )
