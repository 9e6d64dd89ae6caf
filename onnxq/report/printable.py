"""Text from files as a terminal may print it: names must not move its cursor or hide a part."""

from __future__ import annotations

import unicodedata

MOST_CHARACTERS = 1_000
"""Of a sentence."""

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Categories of characters that are not seen, or reorder others: ANSI escapes, bidi overrides."""


def printable(text: str) -> str:
    """The text with every character that controls and none that is seen spelt as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def sentence(text: str) -> str:
    """One line with a capital and a full stop, of bounded length: its middle goes first."""
    text = printable(" ".join(text.split()))
    if len(text) > MOST_CHARACTERS:
        kept = (MOST_CHARACTERS - 3) // 2
        text = f"{text[:kept]}...{text[-kept:]}"
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
