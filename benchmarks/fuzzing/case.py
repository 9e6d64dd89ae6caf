"""One case from its number to its line."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzzing import outcome, sandbox


@dataclass(frozen=True)
class Line:
    """What is recorded of a case, tab by tab.

    Attributes:
        family: of the case.
        seed: its number; with the family it repeats the case.
        outcome: how it ended.
        seconds: it took.
        kind: what it was.
        text: what was said on standard error.
    """

    family: str
    seed: int
    outcome: str
    seconds: float
    kind: str
    text: str

    def __str__(self) -> str:
        parts = (f"{self.family}:{self.seed}", self.outcome, f"{self.seconds:.2f}", self.kind)
        return "\t".join(each.replace("\t", " ") for each in (*parts, self.text))

    @classmethod
    def parse(cls, text: str) -> Line:
        """The line that `str` wrote."""
        case, found, seconds, kind, said = text.rstrip("\n").split("\t")
        family, seed = case.split(":")
        return cls(family, int(seed), found, float(seconds), kind, said)

    @property
    def failed(self) -> bool:
        """Whether the case shows a defect."""
        return self.outcome not in outcome.GOOD


def run_case(family: str, seed: int, compressed: Path, *, command: bool, keep: bool) -> Line:
    """Run one case.

    Args:
        family: of the case.
        seed: its number.
        compressed: a file that onnxq wrote.
        command: whether it runs through the command line, in a process of its own.
        keep: whether its folder stays, and is named on standard error.
    """
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        return _run(family, seed, compressed, place, command)
    finally:
        if keep:
            print(f"kept {place}", file=sys.stderr)
        else:
            _remove(place)


def _run(family: str, seed: int, compressed: Path, place: Path, command: bool) -> Line:
    from fuzzing.families import prepare

    folder = place / "case"
    folder.mkdir()
    began = time.monotonic()
    try:
        case = prepare(family, seed, folder, compressed)
    except Exception as error:
        # A line of the run, which goes on.
        traceback.print_exc()
        return Line(family, seed, "defect of the fuzzer", 0, "", f"{type(error).__name__}: {error}")
    before = outcome.contents(folder)
    if command:
        ended = sandbox.run_command(case.arguments, folder)
    else:
        ended = sandbox.run_forked(_command_line(case.arguments), folder)
    seconds = time.monotonic() - began
    found = outcome.judge(ended, folder, before, case.out)
    text = outcome.sentence(ended)
    if case.taken and found != outcome.DONE and found in outcome.GOOD:
        gains = any(word in ended.err for word in outcome.NO_GAIN_WORDS)
        found = outcome.NO_GAIN if gains else "refused a valid one"
    if found == outcome.DONE and case.valid is not None and case.out is not None:
        found = _compared(folder, case.out, case.valid.fresh)
    elif case.taken and case.valid is not None and found not in (outcome.DONE, outcome.NO_GAIN):
        found = _really_valid(folder, case.valid.fresh) or found
    return Line(family, seed, found, seconds, case.kind, text)


def _command_line(arguments: list[str]) -> Callable[[], object]:
    def work() -> object:
        from onnxq.cli import main

        return main(arguments, prog_name="onnxq")

    return work


def _compared(folder: Path, out: Path, feeds: dict[str, object]) -> str:
    """Whether the written file is right; sessions are opened in a child, never here."""

    def work() -> None:
        from fuzzing.quality import compare_files

        print(compare_files(folder / "model.onnx", out, feeds) or outcome.DONE)

    ended = sandbox.run_forked(work, folder)
    return (
        ended.out.strip() if ended.code == 0 else f"output does not run: {outcome.sentence(ended)}"
    )


def _really_valid(folder: Path, feeds: dict[str, object]) -> str | None:
    """A sentence where the model that was refused is no valid one: a defect of the fuzzer."""

    def work() -> None:
        from fuzzing.quality import runs

        print(runs(folder / "model.onnx", feeds))

    ended = sandbox.run_forked(work, folder)
    return None if ended.out.strip() == "True" else f"not valid: {outcome.sentence(ended)}"


def _remove(place: Path) -> None:
    """Remove a folder; none of what a case writes is write-protected."""
    for root, folders, files in os.walk(place, topdown=False):
        for name in (*files, *folders):
            path = Path(root) / name
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
    place.rmdir()
