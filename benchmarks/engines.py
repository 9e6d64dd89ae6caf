"""The kernels of the training build against standard operators: single steps, and whole runs.

    python benchmarks/engines.py steps [SUBJECT-wXaY ...]
    python benchmarks/engines.py runs [--model resnet20] [--bits 4,4] [--seeds 0,1,2]
        [--samples 256] [--epochs 4]

`steps` takes one step with each engine from the same state, in one process. `runs` compresses with
each engine to the end, and compares KL divergence and SQNR on the held-out samples. Needs the
training build.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from models import subjects
from training_step import Step, make_step

from onnxq import Recipe, compress
from onnxq.engine import Engine
from onnxq.options.table import EngineName
from onnxq.pipeline import read
from onnxq.progress import Silent
from onnxq.synthesise.objective import LOSS as SYNTHESIS_LOSS
from onnxq.synthesise.subject import WEIGHTS, find_subject
from onnxq.train.checkpoint import Job
from onnxq.train.objective import LOSS

ENGINES: tuple[EngineName, ...] = ("ort-training", "onnx")
STEPS = {
    "resnet20-w8a8": ("resnet20", (8, 8), ("thresholds",)),
    "resnet20-w8a8-weights": ("resnet20", (8, 8), ("weights",)),
    "resnet20-w4a4": ("resnet20", (4, 4), ("steps", "weights")),
    "shufflenet-w4a8": ("shufflenet", (4, 8), ("steps", "weights")),
}
SYNTHESIS = "resnet20-synthesis"
IMAGES = 16


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps")
    steps.add_argument("names", nargs="*", default=[*STEPS, SYNTHESIS])
    runs = commands.add_parser("runs")
    runs.add_argument("--model", default="resnet20")
    runs.add_argument("--bits", default="4,4")
    runs.add_argument("--seeds", default="0,1,2")
    runs.add_argument("--samples", type=int, default=256)
    runs.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    if options.command == "steps":
        print("| step | inputs | loss | losses apart | gradients apart, worst | of all |")
        print("|---|---|---|---|---|---|")
        for name in options.names:
            print(step_row(name), flush=True)
    else:
        for line in run_rows(options):
            print(line, flush=True)


def step_row(name: str) -> str:
    """One step with each engine, from the same state."""
    with tempfile.TemporaryDirectory() as folder:
        step = synthesis_step() if name == SYNTHESIS else make_step(Path(folder), *STEPS[name])
    loss_name = SYNTHESIS_LOSS if name == SYNTHESIS else LOSS
    parameters = {each: step.feeds[each] for each in step.names}
    others = {each: array for each, array in step.feeds.items() if each not in parameters}
    (loss, found), (other_loss, other) = (
        Engine(step.model, step.names, loss_name, workers=1, kernels=each).gradients(
            parameters, [others]
        )
        for each in ENGINES
    )
    apart = {key: norm([other[key] - found[key]]) for key in found}
    worst = max(apart, key=lambda key: apart[key] / max(norm([found[key]]), 1e-30))
    whole = norm(apart.values()) / norm(found.values())
    return (
        f"| {name} | {len(found)} | {loss:.6g} | {abs(other_loss - loss) / abs(loss):.0e} | "
        f"{apart[worst] / norm([found[worst]]):.1e} | {whole:.1e} |"
    )


def synthesis_step() -> Step:
    """Images of noise, and the losses by which they are learned."""
    files = subjects()["resnet20"]
    job = Job(files.model, None, Recipe(data_free=True), Silent(), files.preprocess)
    original, _ = read(job, [])
    subject = find_subject(original.normalised.unfolded, original.preprocess)
    name, images = subject.space.name, subject.space.noise(np.random.default_rng(0), IMAGES)
    return Step(subject.objective(WEIGHTS).attach(subject.model), (name,), {name: images})


def norm(arrays: Iterable[np.ndarray | float]) -> float:
    """Euclidean norm of arrays taken together."""
    return float(np.sqrt(sum(np.square(each, dtype=np.float64).sum() for each in arrays)))


def run_rows(options: argparse.Namespace) -> Iterable[str]:
    """A row for each run, and the difference of the engines' means."""
    subject = subjects()[options.model]
    weight_bits, activation_bits = map(int, options.bits.split(","))
    found: dict[str, list[Mapping[str, float]]] = {engine: [] for engine in ENGINES}
    yield "| engine | seed | KL | SQNR, dB | agreement |\n|---|---|---|---|---|"
    for seed in map(int, options.seeds.split(",")):
        for engine in ENGINES:
            recipe = Recipe(
                weight_bits=weight_bits, activation_bits=activation_bits, seed=seed, engine=engine,
                samples=options.samples, epochs=options.epochs, max_minutes=1000,
            )  # fmt: skip
            metrics = compress(
                subject.model, subject.unlabelled, recipe, preprocess=subject.preprocess
            ).metrics
            [sqnr] = metrics.sqnr_db.values()
            found[engine].append({"KL": metrics.kl or 0.0, "SQNR": sqnr})
            yield f"| {engine} | {seed} | {metrics.kl:.5f} | {sqnr:.3f} | {metrics.agreement:.4f} |"
    for name in ("KL", "SQNR"):
        yield difference(name, *([run[name] for run in found[engine]] for engine in ENGINES))


def difference(name: str, one: Sequence[float], other: Sequence[float]) -> str:
    """The means of both engines, and their difference with its standard error."""
    means = statistics.mean(one), statistics.mean(other)
    error = np.sqrt((statistics.variance(one) + statistics.variance(other)) / len(one))
    paired = [b - a for a, b in zip(one, other, strict=True)]
    return (
        f"{name}: means {means[0]:.5f} and {means[1]:.5f}, difference {means[1] - means[0]:+.5f} ± "
        f"{error:.5f} (of pairs ± {statistics.stdev(paired) / np.sqrt(len(paired)):.5f})"
    )


if __name__ == "__main__":
    main()
