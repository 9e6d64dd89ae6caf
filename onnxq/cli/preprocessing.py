"""From flags to `Preprocess`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.data.preprocess import Preprocess


def preprocess_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's flags that `preprocess_from_flags` takes."""
    names = ("preprocess_file", "mean", "std", "resize", "crop", "layout", "bgr")
    return {name: flags[name] for name in names}


def preprocess_from_flags(
    model: Path,
    *,
    preprocess_file: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    resize: int | tuple[int, ...] | None,
    crop: int | None,
    layout: str | None,
    bgr: bool,
) -> Preprocess | None:
    """The settings that the flags give; None where there are none.

    A flag overrides what `--preprocess`, or else the model, has for the same setting.

    Raises:
        DataError: a setting is out of range, or there is no mean and std to go with a flag.
    """
    from onnxq.data.preprocess import Preprocess, find_preprocess, load_preprocess
    from onnxq.verify.opened import open_model

    flags = {"mean": mean, "std": std, "resize": resize, "crop": crop, "layout": layout}
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if bgr:
        given["bgr"] = True
    base = None if preprocess_file is None else load_preprocess(preprocess_file)
    if not given:
        return base
    if "mean" in given and "std" in given and base is None:
        return Preprocess(**given)
    if base is None:
        base = find_preprocess(model, open_model(model).metadata)
    if base is None:
        raise DataError(
            f"--{next(iter(given))} is given but '{model}' has no other preprocessing; give "
            "both --mean and --std, or --preprocess."
        )
    return dataclasses.replace(base, **given)
