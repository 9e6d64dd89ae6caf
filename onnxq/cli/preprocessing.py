"""`Preprocess` from flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.data.preprocess import Preprocess


def preprocess_from_flags(model: Path, flags: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing of the flags; None where there are none.

    A flag overrides the same setting of `--preprocess`, or else of the model.

    Raises:
        DataError: a setting is out of range, or a flag is given without mean and std.
    """
    from onnxq.data.preprocess import Preprocess, find_preprocess, load_preprocess
    from onnxq.verify.opened import open_model

    names = ("mean", "std", "resize", "crop", "layout", "bgr")
    given = {name: flags[name] for name in names if flags[name] not in (None, False)}
    file = flags["preprocess_file"]
    base = None if file is None else load_preprocess(file)
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
