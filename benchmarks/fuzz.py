"""Fuzz onnxq: thousands of valid and damaged models, samples and settings.

    python benchmarks/fuzz.py [--cases 10000] [--family NAME ...] [--valid] [--out FILE]
    python benchmarks/fuzz.py --case FAMILY:SEED [--keep] [--command]
    python benchmarks/fuzz.py --ci
    python benchmarks/fuzz.py --table FILE

Workers import everything once and fork a child for each case, which gets 20 s, 2 GB and a
folder of its own. A case is made from its family and its number alone, so that its line in the
file repeats it. A run goes on where the file ends; the exit code is 1 where a case has failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzzing.case import Line, run_case
from fuzzing.families import FAMILIES, is_valid
from fuzzing.sandbox import import_everything
from fuzzing.table import table

ROOT = Path(__file__).resolve().parents[1]
CI_CASES, CI_COMMANDS = 200, 20
CI_LATER = 5_000
"""The numbers of the cases that go through the command line in CI are others."""

Work = tuple[str, int, bool]
"""Family, number, and whether it goes through the command line."""


def main() -> int:
    """Run what the arguments ask for."""
    arguments = _arguments()
    if arguments.table is not None:
        return _report(_lines(arguments.table))
    # No TemporaryDirectory: a forked child would remove it when it ends.
    folder = Path(tempfile.mkdtemp(prefix="fuzz-base-"))
    try:
        compressed = _compress(folder)
        if arguments.case is not None:
            return _repeat(arguments, compressed)
        return _run(arguments, arguments.out or folder / "lines.txt", compressed)
    finally:
        shutil.rmtree(folder)


def _repeat(arguments: argparse.Namespace, compressed: Path) -> int:
    """Run one case, as its line says."""
    family, _, seed = arguments.case.partition(":")
    line = run_case(family, int(seed), compressed, command=arguments.command, keep=arguments.keep)
    print(line)
    return int(line.failed)


def _run(arguments: argparse.Namespace, out: Path, compressed: Path) -> int:
    """Run the cases that the file has no line of."""
    done = {(line.family, line.seed) for line in _lines(out)}
    works = _ci_works() if arguments.ci else _works(arguments.cases, arguments.first)
    wanted = arguments.family or list(FAMILIES)
    works = [work for work in works if work[:2] not in done and work[0] in wanted]
    if arguments.valid:
        works = [work for work in works if is_valid(work[1])]
    began = time.monotonic()
    _run_all(works, out, compressed, arguments.processes)
    print(f"{len(works)} cases in {time.monotonic() - began:.0f} s\n")
    return _report(_lines(out))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="shared out among the families")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of a family")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="these alone")
    parser.add_argument("--valid", action="store_true", help="the valid cases alone")
    parser.add_argument("--out", type=Path, help="the file for a line of each case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", metavar="FAMILY:SEED", help="repeat one case")
    parser.add_argument("--keep", action="store_true", help="keep the folder of that case")
    parser.add_argument("--command", action="store_true", help="run it through the command line")
    parser.add_argument("--ci", action="store_true", help="the few cases of every check")
    parser.add_argument("--table", type=Path, metavar="FILE", help="count the lines of a file")
    return parser.parse_args()


def _works(cases: int, first: int) -> list[Work]:
    """The cases of a run, of all families in their shares."""
    whole = sum(count for _, count in FAMILIES.values())
    return [
        (family, first + seed, False)
        for family, (_, count) in FAMILIES.items()
        for seed in range(-(-count * cases // whole))
    ]


def _ci_works() -> list[Work]:
    commands = [(family, CI_LATER + seed, True) for family, seed, _ in _works(CI_COMMANDS, 0)]
    return [*commands[:CI_COMMANDS], *_works(CI_CASES, 0)]


def _compress(folder: Path) -> Path:
    """A file that onnxq wrote, for cases to damage."""
    out = folder / "compressed.onnx"
    data, model = ROOT / "sample_models" / "digits" / "unlabelled", ROOT / "sample_models"
    arguments = ["compress", str(model / "digits_mlp.onnx"), "--data", str(data), "-o", str(out)]
    command = [
        sys.executable,
        "-m",
        "onnxq",
        *arguments,
        "--learn",
        "none",
        "--samples",
        "16",
        "-q",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return out


def _run_all(works: list[Work], out: Path, compressed: Path, processes: int) -> None:
    """Share the cases out among forked workers, each of which appends its lines to the file."""
    import_everything()
    workers = []
    for index in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _work(works[index::processes], out, compressed, loud=index == 0)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(pid)
    for pid in workers:
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise SystemExit("a worker of the fuzzer itself has failed")


def _work(works: list[Work], out: Path, compressed: Path, loud: bool) -> None:
    with out.open("a", encoding="utf-8", buffering=1) as file:
        for done, (family, seed, command) in enumerate(works, 1):
            line = run_case(family, seed, compressed, command=command, keep=False)
            file.write(f"{line}\n")
            if loud and done % 200 == 0:
                print(f"{done} of {len(works)}", file=sys.stderr, flush=True)


def _lines(path: Path) -> list[Line]:
    if not path.exists():
        return []
    return [Line.parse(text) for text in path.read_text(encoding="utf-8").splitlines()]


def _report(lines: list[Line]) -> int:
    order = list(FAMILIES)
    lines.sort(key=lambda line: (order.index(line.family), line.seed))
    failed = [line for line in lines if line.failed]
    for line in failed[:50]:
        print(line)
    print(f"\n{table(lines)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
