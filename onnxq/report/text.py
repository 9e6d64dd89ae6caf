"""Values and names as text for the terminal."""

from __future__ import annotations

import unicodedata

NONE = "-"
"""What stands for a metric that was not measured or has no meaning."""

_KILO = 1000
SMALLEST_MS = 0.1


def size_text(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1: `1.12 MB`."""
    value, units = float(size), ["B", "kB", "MB", "GB"]
    while value >= _KILO and len(units) > 1:
        value /= _KILO
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.3g} {units[0]}"


def time_text(median: float | None, spread: float | None) -> str:
    """Milliseconds with their spread, small ones in µs: `0.764 ± 0.02 ms`."""
    if median is None:
        return NONE
    unit, factor = ("ms", 1) if median >= SMALLEST_MS else ("µs", 1000)
    text = f"{factor * median:.3g}"
    return f"{text} {unit}" if spread is None else f"{text} ± {factor * spread:.1g} {unit}"


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if value is None:
        return NONE
    return f"{value:.{digits}g}"


def percent_text(share: float | None) -> str:
    """A share of 1 in percent: `99.41 %`."""
    return NONE if share is None else f"{100 * share:.2f} %"


def points_text(value: float | None, error: float | None = None) -> str:
    """Percentage points with one standard error: `0.10 ± 0.05`."""
    if value is None:
        return NONE
    value = value or 0.0  # no "-0.00"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def metric_text(name: str, value: float) -> str:
    """The value of a task's metric: a share in percent, a cosine, decibels, or a plain number."""
    if name.startswith("cosine"):
        return f"{value:.5f}"
    if name.startswith("PSNR"):
        return decibels_text(value)
    return number_text(value) if name.startswith("mean error") else percent_text(value)


def decibels_text(value: float) -> str:
    """An SQNR in dB, or that the outputs are equal."""
    return "equal" if value >= 200 else f"{value:.1f} dB"


MOST_CHARACTERS = 1_000
"""Of a sentence."""

_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Categories of characters that are not seen, or reorder others: ANSI escapes, bidi overrides."""


def printable(text: str) -> str:
    """The text with every control or invisible character escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _HIDDEN else c for c in text)


def sentence(text: str) -> str:
    """One line with a capital and a full stop; a long one is shortened in the middle."""
    text = printable(" ".join(text.split()))
    if len(text) > MOST_CHARACTERS:
        kept = (MOST_CHARACTERS - 3) // 2
        text = f"{text[:kept]}...{text[-kept:]}"
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
