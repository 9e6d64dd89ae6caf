"""Mutations of the fields of a protobuf message, whatever they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3e38, float("inf"), float("-inf"), float("nan"))
STRINGS = (
    "", " ", "x", "x" * 70_000, "\x1b[31mred", "two\nlines", "tab\t\0zero", "\u202eright to left",
    "../../outside", "/absolute", "naïve‑名前", "'quoted' \"twice\"",
    "[bold]markup[/bold]", "%s {0} $x",
)  # fmt: skip
DEEPEST, MOST = 8, 4000
"""How far a message is looked into, and how many fields are collected at most."""

_WHOLE = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_REAL = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)

Place = tuple[Message, FieldDescriptor]


def mutate_fields(message: Message, rng: np.random.Generator) -> str:
    """Change one to three fields of a message or of those inside it; what was changed."""
    done = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        places = list(_places(message))
        # Names of fields first: there are hundreds of dimensions for one opset.
        names = sorted({f"{o.DESCRIPTOR.name}.{f.name}" for o, f in places})
        name = str(rng.choice(names))
        fitting = [p for p in places if f"{p[0].DESCRIPTOR.name}.{p[1].name}" == name]
        owner, field = fitting[rng.integers(len(fitting))]
        done.append(f"{name} {_mutate(owner, field, rng, message)}")
    return ", ".join(done)


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is a list."""
    return bool(field.is_repeated)


def _places(message: Message) -> Iterator[Place]:
    """Every field of every message inside, those that are not set included."""
    waiting, found = [(message, 0)], 0
    while waiting and found < MOST:
        owner, depth = waiting.pop(0)
        for field in owner.DESCRIPTOR.fields:
            found += 1
            yield owner, field
            if field.type != FieldDescriptor.TYPE_MESSAGE or depth >= DEEPEST:
                continue
            value = getattr(owner, field.name)
            if is_repeated(field):
                waiting += [(each, depth + 1) for each in value]
            elif owner.HasField(field.name):
                waiting.append((value, depth + 1))


def _mutate(owner: Message, field: FieldDescriptor, rng: np.random.Generator, root: Message) -> str:
    if is_repeated(field):
        return _mutate_list(owner, field, rng)
    if rng.random() < 0.25:
        owner.ClearField(field.name)
        return "cleared"
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(owner, field.name).SetInParent()
        return "set"
    setattr(owner, field.name, _value(field, rng, getattr(owner, field.name)))
    return "changed"


def _mutate_list(owner: Message, field: FieldDescriptor, rng: np.random.Generator) -> str:
    items = getattr(owner, field.name)
    how = str(rng.choice(["delete", "double", "swap", "reverse", "clear", "add", "change"]))
    if how == "add" or not len(items):
        _add(items, field, rng)
        return "added"
    at, other = (int(i) for i in rng.integers(len(items), size=2))
    if how == "clear":
        owner.ClearField(field.name)
    elif how == "delete":
        del items[at]
    elif how == "double":
        items.append(_copy(items[at]))
    elif how == "change" and field.type != FieldDescriptor.TYPE_MESSAGE:
        items[at] = _value(field, rng, items[at])
    else:
        kept = [_copy(each) for each in items]
        kept[at], kept[other] = kept[other], kept[at]
        del items[:]
        items.extend(kept[::-1] if how == "reverse" else kept)
    return how


def _copy(item: Any) -> Any:
    if not isinstance(item, Message):
        return item
    copy = type(item)()
    copy.CopyFrom(item)
    return copy


def _add(items: Any, field: FieldDescriptor, rng: np.random.Generator) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        items.add()
    else:
        items.append(_value(field, rng, None))


def _value(field: FieldDescriptor, rng: np.random.Generator, old: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return int(rng.choice(sorted(field.enum_type.values_by_number)))
    if field.type in _WHOLE:
        low, high = _WHOLE[field.type]
        near = [] if old is None else [old + 1, old - 1, old * 2]
        known = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 23]
        value = int(rng.choice(np.array([*INTEGERS, *near, *known], object)))
        return min(max(value, low), high)
    if field.type in _REAL:
        return float(rng.choice(FLOATS))
    if field.type == FieldDescriptor.TYPE_STRING:
        return STRINGS[rng.integers(len(STRINGS))]
    return _bytes(old or b"", rng)


def _bytes(old: bytes, rng: np.random.Generator) -> bytes:
    kind = int(rng.integers(5))
    if kind == 0:
        return old[: int(rng.integers(len(old) + 1))]
    if kind == 1:
        return old + rng.bytes(int(rng.integers(1, 9)))
    if kind == 2:
        return b""
    if kind == 3:
        return bytes(STRINGS[rng.integers(len(STRINGS))], "utf-8")
    return rng.bytes(len(old))
