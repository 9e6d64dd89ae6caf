"""Preprocessing from Hugging Face's `preprocessor_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
