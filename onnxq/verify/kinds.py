"""Whether values read from a file are of the kinds that a dataclass names."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def misfit(kind: type, fields: Mapping[str, Any]) -> str | None:
    """The first field whose value is not of the kind that a dataclass gives it.

    Args:
        kind: the dataclass; names that it lacks are passed over.
        fields: values by name, as JSON has them.

    Returns:
        The field's name, or None where all of them fit.
    """
    hints = get_type_hints(kind)
    known = ((name, value) for name, value in fields.items() if name in hints)
    return next((name for name, value in known if not _fits(value, hints[name])), None)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()
        )
    if origin is list:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if hint is float:
        return type(value) in (int, float)
    # A bool is an int to isinstance.
    return type(value) is hint
