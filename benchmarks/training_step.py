"""How long a training step's gradients take, and whether two versions of the engine agree.

    python benchmarks/training_step.py [SUBJECT ...] [--bits 8] [--learn weights] [--against TREE]

TREE is another checkout of the project: its engine takes the same steps, in turns with this
one's, so that one run gives the ratio of the times, the losses and the distance of the
gradients. Each checkout runs in a process of its own, on one core.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from models import subjects
from prepared import prepare

from onnxq import Recipe
from onnxq.engine import Engine
from onnxq.learn.train import Trained, make_parts
from onnxq.train.objective import LOSS

TREE = Path(__file__).parents[1]
BATCHES = {"mobilenet": 8, "darknet": 8}
ROUNDS = 7


def main() -> None:
    """Print one line per subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet20", "mobilenet"])
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--learn", default="weights")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--against", type=Path, default=TREE)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker)
        return
    for name in options.names:
        print(compare(name, options), flush=True)


def compare(name: str, options: argparse.Namespace) -> str:
    """Times of both checkouts and what they find, in words."""
    learns = tuple(options.learn.split(","))
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(Path(folder), name, (options.bits, options.bits), learns)
        ir.save(step.model, Path(folder) / "student.onnx")
        (Path(folder) / "batch").write_bytes(pickle.dumps((step.names, step.feeds)))
        workers = [start(tree, folder) for tree in (options.against, TREE)]
        times: tuple[list[float], list[float]] = ([], [])
        found: list[Any] = [None, None]
        for _ in range(options.rounds):
            for index, worker in enumerate(workers):
                worker.stdin.write(b"\n")
                worker.stdin.flush()
                seconds, found[index] = pickle.load(worker.stdout)
                times[index].append(seconds)
        for worker in workers:
            worker.communicate()
    before, after = (1000 * statistics.median(each) for each in times)
    ratio = statistics.median(new / old for old, new in zip(*times, strict=True))
    (old_loss, old), (new_loss, new) = found
    apart = norm([new[key] - old[key] for key in old]) / norm(list(old.values()))
    return (
        f"{name} W{options.bits}A{options.bits} {options.learn}: {before:.0f} ms before, "
        f"{after:.0f} ms now, ratio {ratio:.2f}; loss {old_loss:.6g} and {new_loss:.6g}, "
        f"gradients {apart:.1e} of their norm apart"
    )


def norm(arrays: list[np.ndarray]) -> float:
    """Euclidean norm of arrays taken together."""
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


@dataclass(frozen=True)
class Step:
    """A student with its loss, the inputs that are trained, and a batch with all parameters."""

    model: ir.Model
    names: tuple[str, ...]
    feeds: dict[str, np.ndarray]


def make_step(folder: Path, name: str, bits: tuple[int, int], learns: tuple[str, ...]) -> Step:
    """The first step of training a model at so many bits of weights and activations."""
    subject = subjects()[name]
    weight_bits, activation_bits = bits
    recipe = Recipe(
        equalize=False, weight_bits=weight_bits, activation_bits=activation_bits, learn=learns
    )
    ready = prepare(subject.model, subject.unlabelled, recipe, folder, subject.preprocess)
    variant, targets = ready.variant, ready.quantize.targets
    student, qparams = variant.student, variant.qparams
    parts = make_parts(
        set(learns), student.plan, qparams, variant.full_ranges(), variant.elements()
    )
    trained = Trained(parts, student.plan, qparams)
    batch = np.arange(BATCHES.get(name, 128))
    [shard] = targets.train.batches(len(batch), batch)
    feeds = {**student.feeds(trained.qparams()), **shard}
    return Step(targets.objective.attach(student.model), tuple(trained.names), feeds)


def start(tree: Path, folder: str) -> subprocess.Popen[bytes]:
    """A process that takes a step with a checkout's engine for each line that it reads."""
    path = os.pathsep.join([str(tree), str(TREE / "benchmarks")])
    return subprocess.Popen(
        [sys.executable, "-P", __file__, "--worker", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def serve(folder: Path) -> None:
    """Take a step for each line of stdin; give its seconds, loss and gradients on stdout."""
    names, feeds = pickle.loads((folder / "batch").read_bytes())
    engine = Engine(ir.load(folder / "student.onnx"), names, LOSS, workers=1)
    parameters = {name: feeds.pop(name) for name in names}
    engine.gradients(parameters, [feeds])
    for _ in sys.stdin:
        began = time.process_time()
        found = engine.gradients(parameters, [feeds])
        pickle.dump((time.process_time() - began, found), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
