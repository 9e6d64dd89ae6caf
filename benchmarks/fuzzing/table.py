"""The table that counts the lines of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fuzzing.case import Line
from fuzzing.outcome import GOOD


def table(lines: Iterable[Line]) -> str:
    """A row for each family: cases by outcome and minutes; then the failures."""
    lines = list(lines)
    families = list(dict.fromkeys(line.family for line in lines))
    head = ["family", "cases", *GOOD, "failures", "minutes", "slowest, s"]
    rows = [_row(name, [line for line in lines if line.family == name]) for name in families]
    if len(rows) != 1:
        rows.append(_row("all", lines))
    text = [_join(head), "|---" * len(head) + "|", *map(_join, rows)]
    failed = [line for line in lines if line.failed]
    kinds = Counter(line.outcome.split(":")[0] for line in failed)
    if failed:
        text += ["", "| failure | cases | the first |", "|---|---|---|"]
        text += [
            _join([kind, str(count), _first(failed, kind)]) for kind, count in kinds.most_common()
        ]
    return "\n".join(text)


def _row(name: str, lines: list[Line]) -> list[str]:
    counts = Counter(line.outcome for line in lines)
    failures = sum(line.failed for line in lines)
    minutes = sum(line.seconds for line in lines) / 60
    slowest = max(line.seconds for line in lines)
    good = [f"{counts[each]:,}" for each in GOOD]
    return [name, f"{len(lines):,}", *good, f"{failures:,}", f"{minutes:.1f}", f"{slowest:.1f}"]


def _first(failed: list[Line], kind: str) -> str:
    line = next(line for line in failed if line.outcome.split(":")[0] == kind)
    return f"`{line.family}:{line.seed}`"


def _join(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
