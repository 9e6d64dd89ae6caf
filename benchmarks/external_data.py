"""Try to make onnxq read a file outside a model's folder.

    python benchmarks/external_data.py [--processes 2]

Models whose external data lead out of their folder, in every way and with the tensor in every
place of a file, go through every command; so do `.pb` samples. Each case runs in a forked child
with a folder of its own, once with an ordinary file outside, whose access time must stay, and
once with a named pipe, which blocks whoever opens it. A case is good where the command ends with
one sentence about external data and exit code 1, and has written and read nothing. The same
models with their data beside them must go through. The exit code is 1 where a case has failed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from fuzzing.sandbox import Ended, import_everything, run_forked

SHAPE = (64, 128)
WEIGHT = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) / 8
OLD = 1_000_000_000
"""The access time that a file outside is given, in seconds."""

ESCAPES = {
    "parent": "../secret",
    "absolute": "{secret}",
    "parent of a folder": "sub/../../secret",
    "link": "link",
    "link to a folder": "outside/secret",
    "hard link": "hard",
}
"""Ways out of the folder, and the location that a tensor names."""

LEGITIMATE = "sub/w.bin"
KINDS = ("file", "pipe")
"""What lies outside."""

Build = Callable[[onnx.TensorProto], onnx.ModelProto]


def _parsed(text: str, functions: str = "") -> onnx.ModelProto:
    own = ', "own" : 1' if functions else ""
    header = f'<ir_version: 8, opset_import: ["" : 17{own}]>'
    model = onnx.parser.parse_model(
        f"{header} g (float[N, 64] x) => (float[N, 10] y) "
        f"{{ {text} r = Relu (h) y = MatMul (r, v) }} {functions}"
    )
    last = np.random.default_rng(1).standard_normal((128, 10)).astype(np.float32) / 8
    model.graph.initializer.append(onnx.numpy_helper.from_array(last, "v"))
    return model


def _constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["w"], value=tensor)


def _initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = _parsed("h = MatMul (x, w)")
    model.graph.initializer.append(tensor)
    return model


def _attribute(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = _parsed("h = MatMul (x, w)")
    model.graph.node.insert(0, _constant(tensor))
    return model


def _subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = _parsed(
        "n = ReduceSum <keepdims = 0> (x) z = Constant <value_float = -1000000.0> () "
        "c = Less (z, n) h = If (c) "
        "<then_branch = t () => (float[N, 128] a) { a = MatMul (x, w) }, "
        "else_branch = e () => (float[N, 128] b) { b = Concat <axis = 1> (x, x) }>"
    )
    for node in model.graph.node:
        if node.op_type == "If":
            node.attribute[0].g.initializer.append(tensor)
    return model


def _function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    body = '<domain: "own", opset_import: ["" : 17]> f (x) => (h) { h = MatMul (x, w) }'
    model = _parsed("h = own.f (x)", body)
    model.functions[0].node.insert(0, _constant(tensor))
    return model


def _sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = _parsed("h = MatMul (x, w)")
    sparse = model.graph.sparse_initializer.add(dims=SHAPE)
    sparse.values.CopyFrom(tensor)
    sparse.values.dims[:] = [WEIGHT.size]
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.arange(WEIGHT.size), "i"))
    return model


PLACES: dict[str, Build] = {
    "initializer": _initializer,
    "attribute": _attribute,
    "sub-graph": _subgraph,
    "function": _function,
    "sparse initializer": _sparse,
}

LEGITIMATE_PLACES = ("initializer", "attribute", "sub-graph", "function")
"""Of which models go through, too; ONNX Runtime alone reads sparse initializers."""

_QUICK = ("--learn", "none", "--samples", "32", "-q")
_SHORT = ("--samples", "32", "-q")
_DISTIL = ("--epochs", "1", "--samples", "32", "-o", "out.onnx", "-q")
COMMANDS = {
    "compress": ("compress", "{m}", "--data", "{d}", "-o", "out.onnx", *_QUICK),
    "compress --dry-run": ("compress", "{m}", "--dry-run"),
    "inspect": ("inspect", "{m}"),
    "evaluate": ("evaluate", "{m}", "--data", "{l}"),
    "evaluate --reference": ("evaluate", "good.onnx", "--data", "{d}", "--reference", "{m}"),
    "compare, original": ("compare", "{m}", "small.onnx", "--data", "{d}", "--samples", "32"),
    "compare, compressed": ("compare", "good.onnx", "{q}", "--data", "{d}", "--samples", "32"),
    "benchmark": ("benchmark", "{m}", "--rounds", "2"),
    "benchmark --data": ("benchmark", "{m}", "--rounds", "2", "--data", "{d}"),
    "benchmark, second": ("benchmark", "good.onnx", "{m}", "--rounds", "2"),
    "sensitivity": ("sensitivity", "{m}", "--data", "{d}", *_SHORT),
    "distill, teacher": ("distill", "{m}", "good.onnx", "--data", "{d}", *_DISTIL),
    "distill, student": ("distill", "good.onnx", "{m}", "--data", "{d}", *_DISTIL),
    "compress --generator": (
        "compress", "good.onnx", "--data-free", "--generator", "{m}", "-o", "out.onnx", *_QUICK,
    ),
}  # fmt: skip
"""Commands by name: m is the model, q the same where a compressed one is expected, d samples,
l labelled ones."""

ONLY_REFUSED = ("compress --generator", "compare, compressed")
"""No float model is a generator, or what compress wrote."""


@dataclass(frozen=True)
class Case:
    """One command on one model.

    Attributes:
        command: its name.
        place: where in the file the tensor stands; 'sample' for a `.pb` of samples.
        escape: the way out of the folder; empty for data beside the model.
        kind: what lies outside.
    """

    command: str
    place: str
    escape: str = ""
    kind: str = ""


def cases() -> Iterator[Case]:
    """All of them; those that must go through come last."""
    for command, place, escape, kind in itertools.product(COMMANDS, PLACES, ESCAPES, KINDS):
        yield Case(command, place, escape, kind)
    of_samples = [name for name, parts in COMMANDS.items() if "{d}" in parts]
    for command, escape, kind in itertools.product(of_samples, ESCAPES, KINDS):
        yield Case(command, "sample", escape, kind)
    for command, place in itertools.product(COMMANDS, LEGITIMATE_PLACES):
        if command not in ONLY_REFUSED:
            yield Case(command, place)


def prepare(case: Case, place: Path, small: Path) -> list[str]:
    """Lay out the files of a case, and say what is run in the folder `case`.

    Args:
        case: the case.
        place: an empty folder.
        small: a folder with a file that onnxq wrote of each legitimate model.
    """
    folder, secret = place / "case", place / "secret"
    (folder / "sub").mkdir(parents=True)
    _put_outside(case.kind, secret, folder, hard=case.escape == "hard link")
    (folder / LEGITIMATE).write_bytes(WEIGHT.tobytes())
    location = ESCAPES.get(case.escape, LEGITIMATE).format(secret=secret)
    good = _initializer(onnx.numpy_helper.from_array(WEIGHT, "w"))
    (folder / "good.onnx").write_bytes(good.SerializeToString())
    # Of `good.onnx`, or of the model itself, to be compared with it.
    shutil.copy(
        small / f"{'initializer' if case.escape else case.place}.onnx", folder / "small.onnx"
    )
    x = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    np.savez(folder / "labelled.npz", x=x, labels=np.arange(64) % 10)
    names = {"m": "model.onnx", "q": "model.onnx", "d": "data.npz", "l": "labelled.npz"}
    if case.place == "sample":
        (folder / "samples").mkdir()
        sample = _outside("x", (1, 64), location)
        (folder / "samples" / "input_0.pb").write_bytes(sample.SerializeToString())
        names |= {"m": "good.onnx", "q": "small.onnx", "d": "samples"}
    else:
        model = PLACES[case.place](_outside("w", SHAPE, location))
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        if not case.escape:
            names["q"] = "small.onnx"
    return [part.format(**names) for part in COMMANDS[case.command]]


def _put_outside(kind: str, secret: Path, folder: Path, *, hard: bool) -> None:
    if kind == "pipe":
        os.mkfifo(secret)
    else:
        secret.write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(secret)
    (folder / "outside").symlink_to(secret.parent, target_is_directory=True)
    if hard:
        # Whatever way it is named, a file with two names is refused.
        (folder / "hard").hardlink_to(secret)
    os.utime(secret, (OLD, OLD))


def _outside(name: str, shape: tuple[int, ...], location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=1, dims=shape, data_location=1)
    tensor.external_data.add(key="location", value=location)
    return tensor


def run(case: Case, small: Path) -> str:
    """Run a case; what is wrong with it, or nothing."""
    place = Path(tempfile.mkdtemp(prefix="external-"))
    try:
        arguments = prepare(case, place, small)
        before = _files(place / "case")
        ended = run_forked(_command(arguments), place / "case")
        if not case.escape:
            return "" if ended.code == 0 else f"does not go through: {_said(ended)}"
        return judge(ended, case, place, before)
    finally:
        shutil.rmtree(place)


def judge(ended: Ended, case: Case, place: Path, before: set[Path]) -> str:
    """What is wrong with how a case ended that should be refused."""
    if ended.code is None:
        return "hangs: it has opened the pipe"
    if (place / "secret").stat().st_atime != OLD:
        return "the file outside was read"
    lines = ended.err.strip().splitlines()
    if ended.code != 1 or len(lines) != 1 or not lines[0].startswith("Error: "):
        return f"exit code {ended.code}: {_said(ended)}"
    words = "another file" if case.place == "sample" else "external data"
    if words not in lines[0]:
        return f"another reason: {_said(ended)}"
    return "wrote a file" if _files(place / "case") != before else ""


def _said(ended: Ended) -> str:
    return " | ".join(ended.err.strip().splitlines()[-2:])[:300]


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def _command(arguments: list[str]) -> Callable[[], object]:
    def work() -> object:
        from onnxq.cli import main

        return main(arguments, prog_name="onnxq")

    return work


def _small(folder: Path) -> Path:
    """A folder with what onnxq makes of each model whose data lie beside it."""
    small = folder / "small"
    small.mkdir()
    for name in LEGITIMATE_PLACES:
        (small / f"{name}.onnx").touch()
        place = folder / name
        place.mkdir()
        ended = run_forked(_command(prepare(Case("compress", name), place, small)), place / "case")
        if ended.code:
            raise SystemExit(f"can't compress: {_said(ended)}")
        shutil.copy(place / "case" / "out.onnx", small / f"{name}.onnx")
    return small


def _check_access_times(folder: Path) -> None:
    probe = folder / "probe"
    probe.write_bytes(b"1")
    os.utime(probe, (OLD, OLD))
    probe.read_bytes()
    if probe.stat().st_atime == OLD:
        raise SystemExit("This file system keeps no access times; set TMPDIR to one that does.")


def main() -> int:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    processes = parser.parse_args().processes
    import_everything()
    began, found = time.monotonic(), dict[Case, str]()
    # No TemporaryDirectory: a forked child would remove it when it ends.
    folder = Path(tempfile.mkdtemp(prefix="external-base-"))
    try:
        _check_access_times(folder)
        work, every = partial(run, small=_small(folder)), list(cases())
        with get_context("fork").Pool(processes) as pool:
            found.update(zip(every, pool.imap(work, every), strict=True))
    finally:
        shutil.rmtree(folder)
    for case, wrong in found.items():
        if wrong:
            print(case, wrong, file=sys.stderr)
    print(_table(found))
    print(f"\n{len(found)} cases in {time.monotonic() - began:.0f} s")
    return int(any(found.values()))


def _table(found: dict[Case, str]) -> str:
    places = [*PLACES, "sample"]
    lines = [f"| command | {' | '.join(places)} | data beside the model |"]
    lines.append("|---" * (len(places) + 2) + "|")
    for command in COMMANDS:
        own = {case: wrong for case, wrong in found.items() if case.command == command}
        out = {case: wrong for case, wrong in own.items() if case.escape}
        cells = [_cell(wrong for case, wrong in out.items() if case.place == at) for at in places]
        cells.append(_cell(wrong for case, wrong in own.items() if not case.escape))
        lines.append(f"| {' | '.join([command, *cells])} |")
    return "\n".join(lines)


def _cell(outcomes: Iterable[str]) -> str:
    counts = Counter(not wrong for wrong in outcomes)
    return f"{counts[True]} of {counts.total()}" if counts else "–"


if __name__ == "__main__":
    raise SystemExit(main())
