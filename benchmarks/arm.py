"""Exported files on other processors: their outputs and integer kernels against this machine's.

    python benchmarks/arm.py --python NAME=COMMAND [...] [--reference COMMAND] [--out FILE]

COMMAND runs a Python with numpy and onnxruntime: for Arm, an emulator with a Python for it, as
`arm.md` beside this file sets it up. The reference is this machine's, by default this Python.
Every form of exported file is made here from the sample models, without training. An emulator says
nothing of latency, and none is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parent))

from zoo import Outputs, sqnr_db

from onnxq import Recipe, compress
from onnxq.data.preprocess import find_preprocess
from onnxq.data.samples import open_samples
from onnxq.plan import Plan
from onnxq.runtime.session import Feeds
from onnxq.verify.kernels import INTEGER_KERNELS, read_kernels
from onnxq.verify.opened import open_model

SAMPLES = Path(__file__).parents[1] / "sample_models"
PER_CHANNEL, SIGNED = "int8 per channel", "the same, int8 activations"
RECIPES = {
    PER_CHANNEL: Recipe(),
    "int8 per tensor": Recipe(granularity="per-tensor"),
    "weight-only": Recipe(activation_bits=None),
    "4-bit weights, packed": Recipe(weight_bits=4),
    "4-bit weights and activations": Recipe(weight_bits=4, activation_bits=4),
    "codebook of 16": Recipe(codebook=16),
    "INT4 tensors": Recipe(weight_bits=4, target="int4"),
}
OFFSET = 128
"""From a zero point of uint8 to that of int8."""

HEADER = (
    "| model | file | processor | integer kernels | nodes left float | SQNR to reference, dB | "
    "largest difference, of the largest output | equal decisions | SQNR to float, dB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class File:
    """An exported file, the model and the plan that it was made from, and its form."""

    model: str
    form: str
    path: Path
    plan: Plan


@dataclass(frozen=True)
class Run:
    """What one processor made of a file: its outputs, and the nodes of its optimized graph."""

    outputs: Outputs
    nodes: list[ir.Node]

    def equals(self, other: Run) -> bool:
        """Whether the outputs are equal bit by bit, and the operators the same."""
        pairs = [
            (a, b)
            for name, arrays in self.outputs.items()
            for a, b in zip(arrays, other.outputs[name], strict=True)
        ]
        operators = [node.op_type for node in self.nodes], [node.op_type for node in other.nodes]
        return operators[0] == operators[1] and all(np.array_equal(a, b) for a, b in pairs)


def export_all(model: str, folder: Path) -> list[File]:
    """Every form of a sample model, and one whose activations are int8."""
    files = []
    for number, (form, recipe) in enumerate(RECIPES.items()):
        path = folder / f"{model}{number}.onnx"
        source, data = SAMPLES / f"digits_{model}.onnx", SAMPLES / "digits" / "unlabelled"
        chosen = replace(recipe, learn=("none",), samples=96)
        made = compress(source, data, chosen, out=path, allow_worse=True)
        files.append(File(model, form, path, made.plan))
    first = files[0]
    signed = folder / f"{model}_signed.onnx"
    ir.save(with_signed_activations(ir.load(first.path)), signed)
    return [first, File(model, SIGNED, signed, first.plan), *files[1:]]


def with_signed_activations(model: ir.Model) -> ir.Model:
    """The model with activations of int8: S8S8 in place of U8S8.

    Only zero points are uint8 in a file whose weights are not packed.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.UINT8:
            signed = (tensor.numpy().astype(np.int16) - OFFSET).astype(np.int8)
            value.const_value, value.dtype = ir.tensor(signed, name=value.name), ir.DataType.INT8
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.INT8
    return model


def run_all(command: str, files: list[File], feeds: Path, folder: Path) -> tuple[str, list[Run]]:
    """The version of a command's ONNX Runtime, and what it makes of each file."""
    folder.mkdir()
    places = [folder / f"{number}.npz" for number, _ in enumerate(files)]
    paths = [p for f, out in zip(files, places, strict=True) for p in (f.path, feeds, out)]
    script = Path(__file__).with_name("run_outputs.py")
    arguments = [*shlex.split(command), str(script), "--optimised", *map(str, paths)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.split()[-1], [read_run(place) for place in places]


def read_run(place: Path) -> Run:
    """The outputs and the optimized graph that `run_outputs.py` saved."""
    outputs: Outputs = {}
    for key, array in np.load(place).items():
        outputs.setdefault(key.split("/", 1)[1], []).append(array)
    return Run(outputs, list(ir.load(place.with_suffix(".onnx")).graph))


def row(file: File, processor: str, found: Run, reference: Run, original: Run) -> str:
    """A line of the table; the first output holds the logits."""
    kernels = read_kernels(file.path, file.plan, found.nodes)
    integer = sum(kernel in INTEGER_KERNELS for kernel in kernels.layers.values())
    name = next(iter(original.outputs))
    got, wanted, floats = (np.concatenate(r.outputs[name]) for r in (found, reference, original))
    largest = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    equal = float(np.mean(got.argmax(axis=1) == wanted.argmax(axis=1)))
    same = "equal" if np.array_equal(got, wanted) else f"{sqnr_db([wanted], [got]):.1f}"
    return (
        f"| {file.model} | {file.form} | {processor} | {integer} of {len(kernels.layers)} | "
        f"{len(kernels.float_nodes)} | {same} | {largest:.1e} | {equal:.1%} | "
        f"{sqnr_db([floats], [got]):.1f} |"
    )


def save_feeds(model: Path, place: Path) -> None:
    """The labelled images as the model's inputs, in one batch, without their labels."""
    opened = open_model(model)
    data = SAMPLES / "digits" / "labelled"
    samples = open_samples(data, opened.inputs, find_preprocess(model, opened.metadata), None)
    batches: list[Feeds] = list(samples.batches(len(samples)))
    arrays = {
        f"{i}/{name}": array for i, feed in enumerate(batches) for name, array in feed.items()
    }
    np.savez(place, allow_pickle=False, **arrays)


def compare(model: str, commands: dict[str, str], folder: Path) -> list[str]:
    """The lines of one sample model."""
    source, feeds = SAMPLES / f"digits_{model}.onnx", folder / f"{model}.npz"
    save_feeds(source, feeds)
    files = [File(model, "float", source, Plan({}, {})), *export_all(model, folder)]
    runs: dict[str, list[Run]] = {}
    for name, command in commands.items():
        version, runs[name] = run_all(command, files, feeds, folder / f"{model} {name}")
        print(f"{model}, {name}: ONNX Runtime {version}", file=sys.stderr, flush=True)
    here = next(iter(runs.values()))
    return [
        row(file, ", ".join(names), found, here[number], here[0])
        for number, file in enumerate(files)
        for names, found in grouped({name: found[number] for name, found in runs.items()})
    ]


def grouped(runs: dict[str, Run]) -> list[tuple[list[str], Run]]:
    """The runs that differ, with the names of the processors that gave each."""
    groups: list[tuple[list[str], Run]] = []
    for name, run in runs.items():
        for names, other in groups:
            if run.equals(other):
                names.append(name)
                break
        else:
            groups.append(([name], run))
    return groups


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--reference", default=shlex.quote(sys.executable), metavar="COMMAND")
    parser.add_argument("--models", nargs="+", default=["resnet", "mobilenet"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    commands = {platform.machine(): options.reference}
    for each in options.python:
        name, _, commands[name] = each.partition("=")
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            lines += compare(model, commands, Path(folder))
    print(*lines, sep="\n")
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
