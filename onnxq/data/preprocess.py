"""Preprocessing: from an image to the array that the model takes.

The steps are, in this order: RGB (or grey) pixels, resized by the shorter side, cropped in the
middle, and x = (pixel / 255 − mean) / std for each channel. They are stated by options, or by
Hugging Face's `preprocessor_config.json`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from onnxq.data.pixels import read_pixels
from onnxq.errors import DataError

_PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's filters, in the order of their numbers."""


def fields_from_huggingface(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of `Preprocess` for the configuration of an image processor.

    A processor computes (pixel · f − m) / s with its own rescale factor f, and a `Preprocess`
    (pixel / 255 − mean) / std, so mean = m / (255·f) and std = s / (255·f).

    Raises:
        DataError: the configuration has no mean and std, a size of unknown form, or values that are
            no numbers.
    """
    try:
        return _fields(config, path)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise DataError(
            f"'{path}' holds a value of an unexpected type ({error}); correct it, or "
            "give --mean, --std, --resize and --crop instead."
        ) from error


def _fields(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if not config.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    elif "image_mean" in config and "image_std" in config:
        mean, std = _list(config["image_mean"]), _list(config["image_std"])
    else:
        raise DataError(
            f"'{path}' has no 'image_mean' and 'image_std'; expected the configuration of an "
            "image processor, or give --mean and --std."
        )
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    fields: dict[str, Any] = {
        "mean": [_tidy(m / (255 * factor)) for m in mean],
        "std": [_tidy(s / (255 * factor)) for s in std],
    }
    if config.get("do_resize", True) and "size" in config:
        fields["resize"] = _size(config["size"], path)
        fields["resample"] = _PILLOW_FILTERS[int(config.get("resample", 2)) % len(_FILTERS)]
    if config.get("do_center_crop") and "crop_size" in config:
        crop = _size(config["crop_size"], path)
        if isinstance(crop, list) and crop[0] != crop[1]:
            raise DataError(f"'{path}' crops to {crop}; expected a square 'crop_size'.")
        fields["crop"] = crop[0] if isinstance(crop, list) else crop
    return fields


def _size(size: Any, path: Path) -> int | list[int]:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return int(size["shortest_edge"])
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return [int(size["height"]), int(size["width"])]
    raise DataError(
        f"'{path}' gives the size as '{size}'; expected 'shortest_edge', or 'height' and "
        "'width': give --resize and --crop instead."
    )


def _list(value: Any) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list) else [float(value)]


def _tidy(value: float) -> float:
    # 0.485 / (255 · (1 / 255)) is 0.48500000000000004.
    return float(f"{value:.12g}")


METADATA_KEY = "onnxq.preprocess"
"""The key of a model's metadata under which the preprocessing is kept as JSON."""

LARGEST = 1_000_000
"""Of a mean or a standard deviation, whose inverse is the smallest."""
MOST_PIXELS = 16_384
"""Of a side of an image."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_FILTERS = {name: Image.Resampling[name.upper()] for name in Resample.__args__}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Preprocess:
    """How pixels become the model's input.

    Attributes:
        mean: one value per channel, in units of pixels scaled to 0–1; a single value holds for all
            channels, or for grey images.
        std: as `mean`; none is 0.
        resize: the length of the shorter side, or (height, width) regardless of the aspect ratio;
            None keeps the size.
        crop: side of the square that is cut out of the middle; None cuts nothing.
        layout: order of the model's dimensions.
        bgr: whether the model's channels are blue, green, red; `mean` and `std` are red, green,
            blue all the same.
        resample: the filter of `resize`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"
    bgr: bool = False
    resample: Resample = "bilinear"

    def __post_init__(self) -> None:
        for field, problem in _problems(self):
            raise DataError(f"Preprocessing '{field}' is '{getattr(self, field)}'; {problem}.")

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.mean)

    def for_channels(self, channels: int) -> Preprocess:
        """The preprocessing with one mean and std for each of the model's channels.

        Raises:
            DataError: there are several values, and not as many as channels.
        """
        if self.channels == channels:
            return self
        if self.channels != 1:
            raise DataError(
                f"Preprocessing 'mean' has {self.channels} values but the model's input has "
                f"{channels} channel(s); give --mean and --std one value, or {channels}."
            )
        return dataclasses.replace(self, mean=self.mean * channels, std=self.std * channels)

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing and cropping."""
        height, width = self._resized(height, width)
        return (min(self.crop, height), min(self.crop, width)) if self.crop else (height, width)

    def apply(self, image: Image.Image, path: Path | str = "") -> np.ndarray:
        """The image in the model's layout, float32, without a batch dimension.

        Args:
            image: just opened; it is changed.
            path: of its file, for error messages.

        Raises:
            DataError: the scale of the image's values is unknown.
        """
        return self.normalise(self.pixels(image, path))

    def pixels(self, image: Image.Image, path: Path | str = "") -> np.ndarray:
        """The image's pixels, resized and cropped; arguments as of `apply`.

        Returns:
            `(height, width, channels)`, uint8, or float32 from 0 to 255.
        """
        return self.fit(read_pixels(image, self.channels, path))

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels resized and cropped.

        Args:
            pixels: `(height, width, channels)`, uint8, or float32 from 0 to 255.

        Returns:
            Pixels of the same type and channels.
        """
        height, width = self._resized(*pixels.shape[:2])
        if (height, width) != pixels.shape[:2]:
            pixels = _resize(pixels, (width, height), _FILTERS[self.resample])
        if self.crop:
            top, left = (max(0, round((side - self.crop) / 2)) for side in (height, width))
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return pixels

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """The model's input from pixels: x = (pixel / 255 − mean) / std.

        Args:
            pixels: `(..., height, width, channels)`, RGB or grey: uint8, or float32 from 0 to 255.

        Returns:
            float32 `(..., channels, height, width)`, or `(..., height, width, channels)`.
        """
        factor, offset = self._affine
        if self.bgr:
            pixels = pixels[..., ::-1]
        if self.layout == "nchw":
            pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
            factor, offset = factor[:, None, None], offset[:, None, None]
        values: np.ndarray = pixels * factor
        values += offset
        return values

    @cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        step = -1 if self.bgr else 1
        mean, std = np.array(self.mean[::step]), np.array(self.std[::step])
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        shorter = min(height, width)
        return int(self.resize * height / shorter), int(self.resize * width / shorter)

    def to_json(self) -> str:
        """The settings as one line of JSON, with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocess:
        """The settings that `to_json` wrote.

        Raises:
            DataError: the text is not JSON, or a setting is unknown or out of range.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"The preprocessing '{text[:80]}' is not JSON: {error}.") from error
        return _from_fields(fields, "the preprocessing")


def load_preprocess(path: Path) -> Preprocess:
    """The settings in a TOML file or in a Hugging Face `preprocessor_config.json`.

    Raises:
        DataError: the file can't be read, or a setting is unknown or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"Can't read the preprocessing file '{path}' ({reason}); give a TOML file or a "
            "Hugging Face preprocessor_config.json."
        ) from error
    if path.suffix == ".json" and isinstance(fields, dict) and "mean" not in fields:
        fields = fields_from_huggingface(fields, path)
    return _from_fields(fields, f"'{path}'")


def find_preprocess(model_path: Path, metadata: Mapping[str, str]) -> Preprocess | None:
    """The preprocessing beside the model or in its metadata, the most specific first.

    Looks for `<model's stem>.preprocess.toml`, the metadata key `onnxq.preprocess`,
    `preprocess.toml` and `preprocessor_config.json`; None where there is none. Configurations of
    anything but image processors are ignored.
    """
    folder = model_path.parent
    own = folder / f"{model_path.stem}.preprocess.toml"
    if own.is_file():
        return load_preprocess(own)
    if METADATA_KEY in metadata:
        return Preprocess.from_json(metadata[METADATA_KEY])
    if (folder / "preprocess.toml").is_file():
        return load_preprocess(folder / "preprocess.toml")
    config = folder / "preprocessor_config.json"
    return load_preprocess(config) if config.is_file() and _is_for_images(config) else None


def _is_for_images(config: Path) -> bool:
    """Whether a `preprocessor_config.json` belongs to an image processor, as far as can be told."""
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Loading it says what is wrong with it.
        return True
    return not isinstance(fields, dict) or not (
        "sampling_rate" in fields or "feature_size" in fields
    )


def _from_fields(fields: Any, where: str) -> Preprocess:
    if not isinstance(fields, dict):
        raise DataError(f"Expected a table of preprocessing settings in {where}.")
    known = [field.name for field in dataclasses.fields(Preprocess)]
    for key in fields:
        if key not in known:
            raise DataError(
                f"Unknown preprocessing setting '{key}' in {where}; expected one of {known}."
            )
    for key in ("mean", "std"):
        if key not in fields:
            raise DataError(f"The preprocessing setting '{key}' is missing in {where}; add it.")
    numbers = {key: fields[key] for key in ("mean", "std") if _is_number(fields[key])}
    settings = {key: _tuples(value) for key, value in fields.items()}
    return Preprocess(**{**settings, **{key: (value,) for key, value in numbers.items()}})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _problems(settings: Preprocess) -> list[tuple[str, str]]:
    """Fields that are out of range, with the expected values."""
    problems = []
    for field in ("mean", "std"):
        values = getattr(settings, field)
        if not isinstance(values, tuple) or len(values) not in (1, 3) or not _finite(values):
            problems.append((field, f"expected 1 or 3 finite numbers of at most {LARGEST}"))
    if not problems and len(settings.mean) != len(settings.std):
        problems.append(("std", f"expected {len(settings.mean)} values, as many as 'mean' has"))
    if not problems and min(settings.std) < 1 / LARGEST:
        problems.append(("std", f"expected numbers above 0, of at least {1 / LARGEST}"))
    sides = settings.resize if isinstance(settings.resize, tuple) else (settings.resize,)
    if len(sides) not in (1, 2) or not all(_is_side(side) for side in sides):
        problems.append(("resize", f"expected pixels up to {MOST_PIXELS}, or height and width"))
    if not _is_side(settings.crop):
        problems.append(("crop", f"expected pixels up to {MOST_PIXELS}"))
    if settings.layout not in ["nchw", "nhwc"]:
        problems.append(("layout", "expected 'nchw' or 'nhwc'"))
    if not isinstance(settings.bgr, bool):
        problems.append(("bgr", "expected true or false"))
    if settings.resample not in list(_FILTERS):
        problems.append(("resample", f"expected one of {sorted(_FILTERS)}"))
    return problems


def _finite(values: tuple[Any, ...]) -> bool:
    # NaN is not at most anything.
    return all(_is_number(v) and abs(v) <= LARGEST for v in values)


def _is_side(side: Any) -> bool:
    return side is None or (type(side) is int and 0 < side <= MOST_PIXELS)


def _resize(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Pixels of another width and height; Pillow resizes floats channel by channel."""
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        found = np.asarray(image.resize(size, resample), np.uint8)
        return found[:, :, None] if found.ndim == 2 else found
    planes = (Image.fromarray(plane) for plane in np.moveaxis(pixels, -1, 0))
    found = np.stack([np.asarray(plane.resize(size, resample)) for plane in planes], axis=-1)
    # Some filters overshoot, which 8 bits clip.
    return found.clip(0, 255)
