"""What came of a case: done, refused, or one of the failures."""

from __future__ import annotations

import re
from pathlib import Path

from fuzzing.sandbox import Ended

DONE, REFUSED, USAGE, NO_GAIN = "done", "refused", "wrong usage", "no gain"
GOOD = (DONE, REFUSED, USAGE, NO_GAIN)
"""How a case should end; anything else is a failure."""

NO_GAIN_WORDS = (
    "nothing to gain",
    "not smaller",
    "larger than the original",
    "nothing to quantize",
)
"""What a refusal of a valid model that is too small to gain anything says."""

LONGEST = 4000
"""Characters of a sentence."""

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""But for the end of a line."""


def judge(ended: Ended, folder: Path, before: dict[str, bytes], out: Path | None) -> str:
    """The outcome of a command.

    Args:
        ended: how it ended.
        folder: where it ran; beside it lies the folder for its temporary files.
        before: what lay in the folder, by path.
        out: what success writes.
    """
    if ended.code is None:
        return "hang"
    if ended.code < 0:
        return f"crash, signal {-ended.code}"
    if "Traceback (most recent call last)" in ended.err:
        return "traceback"
    if ended.err.startswith("Error: Internal error"):
        return "internal error"
    return (
        _judge_texts(ended)
        or _judge_files(ended.code, folder, before, out)
        or {0: DONE, 1: REFUSED, 2: USAGE}.get(ended.code, f"exit code {ended.code}")
    )


def sentence(ended: Ended) -> str:
    """What standard error said, for a line of the record: of a traceback the last place."""
    lines = [line for line in ended.err.strip().splitlines() if line.strip()]
    if "Traceback (most recent call last)" in ended.err:
        places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
        lines = [f"{lines[-1]} at {places[-1] if places else ''}"]
    text = " | ".join(lines[-3:])
    return _CONTROL.sub("?", text)[:300]


def _judge_texts(ended: Ended) -> str | None:
    if _CONTROL.search(ended.err) or _CONTROL.search(ended.out):
        return "control characters"
    lines = ended.err.strip().splitlines()
    if ended.code == 1:
        if len(lines) != 1:
            return f"{len(lines)} lines for a sentence"
        if not lines[0].startswith("Error: ") or not lines[0].endswith((".", "!", "?")):
            return "no sentence"
        if len(lines[0]) > LONGEST:
            return "a sentence too long"
    if ended.code == 0 and (ended.err.strip() or not ended.out.strip()):
        return "words on stderr" if ended.err.strip() else "nothing said"
    return None


def _judge_files(code: int, folder: Path, before: dict[str, bytes], out: Path | None) -> str | None:
    if any((folder.parent / "temporary").iterdir()):
        return "temporary files left"
    after = contents(folder)
    expected = {out.name} if out is not None and code == 0 else set()
    if expected - after.keys():
        return "no file written"
    if left := after.keys() - before.keys() - expected - {f"{name}.data" for name in expected}:
        return f"left {min(left)}"
    return None if all(after.get(k) == v for k, v in before.items()) else "changed its inputs"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
