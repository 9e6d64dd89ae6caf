"""Bars of a picture."""

from __future__ import annotations

from dataclasses import dataclass

MOST_BARS = 60
"""Bars of one picture; of more the largest are shown."""


@dataclass(frozen=True)
class Bar:
    """One bar of a picture.

    Attributes:
        name: what it stands for.
        text: its value as a reader takes it.
        share: its length, as a share of the longest.
        inner: length of its dark part, as a share of the longest.
    """

    name: str
    text: str
    share: float
    inner: float = 0.0
