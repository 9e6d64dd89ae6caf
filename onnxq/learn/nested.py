"""Groups of arrays as one flat mapping, which a checkpoint holds, and back: `group/name`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxq.session import Arrays


def flattened(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays:
    """The arrays of all groups by `group/name`."""
    return {f"{group}/{name}": v for group, part in groups.items() for name, v in part.items()}


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """What `flattened` was given; what has no slash in its name belongs to no group."""
    groups: dict[str, Arrays] = {}
    for key, array in arrays.items():
        group, slash, name = key.partition("/")
        if slash:
            groups.setdefault(group, {})[name] = array
    return groups
