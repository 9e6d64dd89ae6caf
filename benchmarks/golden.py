"""Whether onnxq still writes what it wrote: digests of graphs and metadata, keys, exit codes.

    python benchmarks/golden.py [--only NAME...] [--record] [--list] [--jobs N]

Every case is a few commands on the sample models, at fixed epochs, so that no clock ends them.
`golden.json` beside this file keeps what they gave. A difference is a line on stdout, and the exit
code is then 1; `--record` writes the file instead, with `--only` the named cases alone. A name may
be a pattern: `--only 'resnet/*'`.

The graph's digests cover nodes, initializers, opsets and interface, not the names of nodes, nor
documentation or shapes in between. The metadata has a digest for each key. Names of the model's
layers and tensors are `*` in keys. The digests belong to one runtime and one kind of processor:
where those differ from the record's, a line on stderr says so, and the digests may differ too.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).parent))

from golden_digests import graph_digests, leaves, metadata_digests, names_in

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_suffix(".json")
SAMPLES = ROOT / "sample_models"
UNLABELLED = SAMPLES / "digits" / "unlabelled"
LABELLED = SAMPLES / "digits" / "labelled"
MODELS = {name: SAMPLES / f"digits_{name}.onnx" for name in ("mlp", "resnet", "mobilenet")}
OUT = "out.onnx"
SHORT = ("--epochs", 2, "--samples", 96, "--seed", 0, "--max-minutes", 10_000)
W4A4 = ("--weight-bits", 4, "--activation-bits", 4)
RECIPES: dict[str, tuple[Any, ...]] = {
    "default": (),
    "w4": ("--weight-bits", 4),
    "w4a4": W4A4,
    "weight-only": ("--activation-bits", "none"),
    "codebook": ("--codebook", 16),
    "max-drop": ("--max-drop", 1),
    "float-layers": (*W4A4, "--learn", "float-layers", "--exclude", "classifier"),
}
STUDENTS = {"mlp": "mlp", "resnet": "mobilenet", "mobilenet": "resnet"}
LONG = {"mlp": 120, "resnet": 40, "mobilenet": 24}
"""Epochs of the runs that are stopped: those of some seconds."""
ERRORS: dict[str, tuple[Any, ...]] = {
    "no data": ("compress", MODELS["mlp"]),
    "absent model": ("compress", "absent.onnx", "--data", UNLABELLED),
    "absent data": ("compress", MODELS["mlp"], "--data", "absent"),
    "bits out of range": ("compress", MODELS["mlp"], "--data", UNLABELLED, "--weight-bits", 99),
    "unknown choice": ("compress", MODELS["mlp"], "--data", UNLABELLED, "--granularity", "x"),
    "pattern without match": ("compress", MODELS["mlp"], "--data", UNLABELLED, "--exclude", "Grmm"),
    "data and none": ("compress", MODELS["mlp"], "--data", UNLABELLED, "--data-free"),
    "no such folder": ("compress", MODELS["mlp"], "--data", UNLABELLED, "-o", "no/such/o.onnx"),
    "not quantized": ("compare", MODELS["mlp"], MODELS["mlp"], "--data", UNLABELLED),
    "no labels": ("evaluate", MODELS["mlp"], "--data", UNLABELLED),
    "unknown verb": ("shrink", MODELS["mlp"]),
    "unknown option": ("inspect", MODELS["mlp"], "--faster"),
    "help": ("--help",),
}

Result = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Commands that run one after the other in an empty folder.

    `model` is the name of the sample model whose layers may be keys. With `stopped`, the last
    command is ended by Ctrl-C while it learns and resumed; the record is that of a run which
    was not.
    """

    model: str
    commands: tuple[tuple[Any, ...], ...]
    stopped: bool = False


def cases() -> dict[str, Case]:
    """Every case that runs commands which succeed, the longest first."""
    found = {}
    for model, path in MODELS.items():
        data = ("--data", UNLABELLED)
        compress = ("compress", path, "-o", OUT, *SHORT)
        made = ("--data-free", "--synthesis", "distilled")
        student = MODELS[STUDENTS[model]]
        distill = ("distill", path, student, "-o", OUT, *SHORT, *data, "--init", "random")
        long = (*data, *W4A4, "--learn", "thresholds", "--epochs", LONG[model])
        found[f"{model}/resume"] = Case(model, ((*compress, *long),), stopped=True)
        found[f"{model}/data-free"] = Case(model, ((*compress, *made),))
        found[f"{model}/distill"] = Case(STUDENTS[model], (distill,))
        for name, options in RECIPES.items():
            found[f"{model}/{name}"] = Case(model, ((*compress, *data, *options),))
    generator = ("--data-free", "--synthesis", "generator")
    made = Case("mlp", (("compress", MODELS["mlp"], "-o", OUT, *SHORT, *generator),))
    return {"mlp/generator": made} | found | verbs()


def verbs() -> dict[str, Case]:
    """The verbs that write no model: only the keys of their `--json` are kept."""
    mlp, data = MODELS["mlp"], ("--data", UNLABELLED, "--samples", 64)
    written = ("compress", mlp, "-o", OUT, "--learn", "none", *data)
    commands: dict[str, tuple[Any, ...]] = {
        "inspect": ("inspect", OUT),
        "inspect-float": ("inspect", mlp),
        "evaluate": ("evaluate", OUT, "--data", LABELLED, "--reference", mlp),
        "evaluate-unlabelled": ("evaluate", OUT, *data, "--reference", mlp),
        "compare": ("compare", mlp, OUT, *data),
        "sensitivity": ("sensitivity", mlp, *data),
        "benchmark": ("benchmark", mlp, OUT, "--rounds", 3),
        "dry-run": ("compress", mlp, "--dry-run"),
    }
    return {f"json/{name}": Case("mlp", (written, verb)) for name, verb in commands.items()}


def main() -> None:
    """Compare, or record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["*"])
    parser.add_argument("--record", action="store_true", help="write golden.json")
    parser.add_argument("--list", action="store_true", help="names of the cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    names = chosen(options.only)
    if options.list:
        print(*names, sep="\n")
        return
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(
            zip(names, pool.map(lambda name: run(name, options.record), names), strict=True)
        )
    if options.record:
        record(found, keep=options.only != ["*"])
        differences = []
    else:
        differences = list(compared(found))
        print(*differences, sep="\n", end="\n" if differences else "")
    seconds = time.monotonic() - start
    print(f"{len(found)} cases, {len(differences)} differences, {seconds:.0f} s", file=sys.stderr)
    sys.exit(1 if differences else 0)


def chosen(patterns: list[str]) -> list[str]:
    """Names of the cases that one of the patterns fits."""
    names = [*cases(), "exit-codes", "public-names"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            sys.exit(f"No case has the name '{pattern}'; --list shows all.")
    return [name for name in names if any(fnmatch.fnmatch(name, each) for each in patterns)]


def run(name: str, recording: bool) -> Result:
    """What a case gives, as it is kept."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "exit-codes":
            return {key: onnxq(each, folder).returncode for key, each in ERRORS.items()}
        if name == "public-names":
            code = "import json, onnxq; print(json.dumps(sorted(onnxq.__all__)))"
            return {"names": json.loads(finished(start(["-c", code], folder)).stdout)}
        try:
            return digests(cases()[name], Path(folder), recording)
        except (
            subprocess.CalledProcessError,
            subprocess.TimeoutExpired,
            json.JSONDecodeError,
        ) as e:
            stderr = getattr(e, "stderr", None) or str(e)
            return {"failed": " ".join(str(stderr).split())[-300:]}


def digests(case: Case, folder: Path, recording: bool) -> Result:
    """Run the commands; digest the model if the last one has written it."""
    *before, last = case.commands
    for command in before:
        onnxq(command, folder).check_returncode()
    if case.stopped and not recording:
        stop(last, folder)
        last = (*last, "--resume")
    done = onnxq((*last, "--json"), folder)
    done.check_returncode()
    names = names_in(onnx.load(MODELS[case.model]))
    found: Result = {"json": sorted({path for path, _ in leaves(json.loads(done.stdout), names)})}
    if OUT in last and last[0] in ("compress", "distill"):
        model = onnx.load(folder / OUT)
        found |= {"graph": graph_digests(model), "metadata": metadata_digests(model, names)}
    return found


def onnxq(arguments: Iterable[Any], folder: Path | str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return finished(start(["-m", "onnxq", *map(str, arguments)], folder))


def start(arguments: list[str], folder: Path | str) -> subprocess.Popen[str]:
    """Python with these arguments, which Ctrl-C reaches even below a shell that ignores it."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """The process when it has ended, at the latest after ten minutes."""
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stop(arguments: Iterable[Any], folder: Path) -> None:
    """Press Ctrl-C in the middle of learning: exit code 130, a checkpoint and no model.

    Before its first step a run has nothing to keep; then it is begun again and left longer.
    """
    for seconds in (0.5, 1.0, 2.0, 4.0):
        done = finished(interrupted(arguments, folder, seconds))
        kept = sorted(path.name for path in folder.iterdir())
        if done.returncode != 130 or kept:
            break
    if done.returncode != 130 or not kept or OUT in kept:
        message = f"Stopped run: exit code {done.returncode}, left {kept}. {done.stderr}"
        raise subprocess.CalledProcessError(done.returncode, done.args, stderr=message)


def interrupted(arguments: Iterable[Any], folder: Path, seconds: float) -> subprocess.Popen[str]:
    """A run that has got Ctrl-C so many seconds after it began to learn."""
    process = start(["-m", "onnxq", *map(str, arguments), "-v"], folder)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("learn:"):
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            break
    return process


def machine() -> dict[str, str]:
    """What the digests depend on beside the code."""
    packages = ("onnx", "onnx-ir", "onnxsim", "numpy", "scipy")
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    return {
        "processor": models[0] if models else platform.machine(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def record(found: dict[str, Result], keep: bool) -> None:
    """Write the record, a line for each case; with `keep`, only what was found changes."""
    failed = {name: each["failed"] for name, each in found.items() if "failed" in each}
    if failed:
        sys.exit("\n".join(f"{name}: {why}" for name, why in failed.items()))
    known = json.loads(RECORD.read_text())["cases"] if keep and RECORD.exists() else {}
    kept = {"machine": machine(), "cases": dict(sorted((known | found).items()))}
    rows = [f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in kept["cases"].items()]
    body = ",\n".join(rows)
    RECORD.write_text(f'{{"machine": {json.dumps(kept["machine"])},\n "cases": {{\n{body}\n }}}}\n')


def compared(found: dict[str, Result]) -> Iterator[str]:
    """A line for each difference to the record."""
    kept = json.loads(RECORD.read_text())
    here = machine()
    for key, value in kept["machine"].items():
        if here.get(key) != value:
            print(f"recorded with {key} {value}, here {here.get(key)}", file=sys.stderr)
    for name, now in found.items():
        before = kept["cases"].get(name)
        if before is None:
            yield f"{name}: not in the record"
        elif "failed" in now:
            yield f"{name}: failed: {now['failed']}"
        else:
            yield from (f"{name}: {line}" for line in differing(before, now))


def differing(before: Result, now: Result) -> Iterator[str]:
    """What differs in one case: keys that came, that went, and those whose values changed."""
    flat, flat_now = dict(flattened(before)), dict(flattened(now))
    for key in sorted(flat.keys() | flat_now.keys()):
        if key not in flat_now:
            yield f"{key} is gone"
        elif key not in flat:
            yield f"{key} is new"
        elif flat[key] != flat_now[key]:
            values = f": {flat[key]} before, now {flat_now[key]}" if "/" not in key else ""
            yield f"{key} changed{values}"


def flattened(value: Result, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys; the members of a list are keys as well."""
    for key, inner in value.items():
        where = f"{path} {key}".strip()
        if isinstance(inner, dict):
            yield from flattened(inner, where)
        elif isinstance(inner, list):
            yield from ((f"{where} {each}", True) for each in inner)
        else:
            yield where, inner


if __name__ == "__main__":
    main()
