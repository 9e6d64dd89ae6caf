"""Label-free retraining against the same retraining with true labels, on the same images.

    python benchmarks/labelled_rival.py [CASE ...] [--seeds 0,1,2] [--rates 0.0005,0.001,0.002]

One half of CIFAR-10's labelled images trains, the other half measures. The rival differs in
nothing but its loss, the cross-entropy with the true labels, by which it also picks its epoch;
labels exist in this script alone. The rival is given the learning rate that measures best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import onnx_ir as ir
from models import ASSETS, Subject, subjects
from onnx_ir import tape
from prepared import prepare

from onnxq import Recipe
from onnxq.data.files import read_rows
from onnxq.data.samples import open_samples
from onnxq.forms.variant import Variant
from onnxq.learn.frozen import freeze
from onnxq.learn.train import Learning, Trained, make_parts
from onnxq.load.interface import input_specs
from onnxq.load.model import load_model
from onnxq.options.recipe import LayerOverride
from onnxq.progress import Silent
from onnxq.runtime.dataset import Joined, Samples
from onnxq.runtime.session import SessionPool
from onnxq.student.qparams import QParams
from onnxq.student.student import bake
from onnxq.train.budget import EPOCHS, Budget
from onnxq.train.held_out import Learned
from onnxq.train.objective import finished, target_name
from onnxq.verify.evaluate import Ranks, paired_metrics

BATCH_SIZE = 100
SMALL = ("/conv1/*", "/layer1/*", "/linear/*")
CASES = {
    "float-layers": Recipe(
        codebook=6,
        learn=("float-layers",),
        layers=tuple(LayerOverride(pattern, keep_float=True) for pattern in SMALL),
    ),
    "codebooks": Recipe(codebook=8, learn=("codebooks",)),
}


def with_labels(given: Joined, logits: str, labels: np.ndarray) -> Joined:
    """The samples with the true labels, one-hot, in the place of the original's outputs."""
    samples, _ = given.parts
    assert isinstance(samples, Samples)
    rows = {target_name(logits): np.eye(labels.max() + 1, dtype=np.float32)[labels]}
    return Joined(samples, Samples(partial(read_rows, rows, ()), samples.places))


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy with true labels; epochs are judged by it too."""

    logits: str
    unit: str = "cross-entropy"

    def attach(self, student: ir.Model) -> ir.Model:
        """A copy of the student with -sum target log softmax(logits) as its loss."""
        model = student.clone(deep_copy=False)
        graph, body = model.graph, tape.Tape()
        value = next(v for node in graph for v in node.outputs if v.name == self.logits)
        target = ir.val(target_name(self.logits), ir.DataType.FLOAT, [None, None])
        graph.inputs.append(target)
        terms = body.op("Mul", [target, body.op("LogSoftmax", [value], {"axis": 1})])
        loss = body.op("Neg", [body.op("ReduceSum", [terms], {"keepdims": 0})])
        return finished(model, body, loss, (value, target))

    def score(self, loss: float, samples: int) -> float:
        """The mean over samples."""
        return loss / samples

    def slope(self, loss: float, samples: int) -> float:
        """1 / samples."""
        return 1.0 / samples


def learn_labelled(
    variant: Variant, train: Joined, learns: set[str], labels: np.ndarray, budget: Budget
) -> Learned:
    """What `onnxq.learn.learn` trains from the same start, with labels."""
    student, start = variant.student, variant.qparams
    trained = Trained(
        make_parts(learns, student.plan, start, variant.full_ranges()), student.plan, start
    )
    moving = student.moving_inputs(trained.names)
    feeds = student.feeds(start)
    fixed = {name: value for name, value in feeds.items() if name not in moving}
    (logits,) = variant.objective.weights
    slices = [with_labels(each, logits, labels) for each in (train, variant.held_out_outputs)]
    objective = CrossEntropy(logits)
    model = objective.attach(student.model)
    with tempfile.TemporaryDirectory() as folder:
        remainder = freeze(model, fixed, moving, tuple(slices), Path(folder), Silent())
        learning = Learning(student, remainder, objective, start, trained, budget)
        return learning.run(Silent())


@dataclass(frozen=True)
class Measure:
    """The half that nothing is learned on."""

    samples: Samples
    labels: np.ndarray

    def ranks(self, model: ir.Model) -> Ranks:
        """Which of its images a model gets right."""
        ranks = Ranks(self.labels)
        for outputs in SessionPool(model).map(self.samples.batches(BATCH_SIZE)):
            ranks.add(outputs)
        return ranks


@dataclass(frozen=True)
class Outcome:
    """What one seed gave."""

    original: Ranks
    before: Ranks
    free: Ranks
    labelled: dict[float, Ranks]


def outcome(
    subject: Subject, recipe: Recipe, rates: Sequence[float], seed: int, images: int
) -> Outcome:
    """Train both ways on one half of the labelled images and measure on the other."""
    recipe = replace(recipe, activation_bits=None, seed=seed, samples=images)
    with np.load(subject.labelled) as arrays:
        pixels, labels = arrays["images"], arrays["labels"].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(pixels))
    half = len(order) // 2
    train, rest = np.sort(order[:half][:images]), np.sort(order[half:])
    original = load_model(subject.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "train.npz", images=pixels[train])
        np.savez(folder / "rest.npz", images=pixels[rest])
        specs = input_specs(original)
        samples = open_samples(folder / "rest.npz", specs, subject.preprocess, None)
        measure = Measure(samples, labels[rest])
        data = folder / "train.npz"
        ready = prepare(subject.model, data, recipe, folder, subject.preprocess)
        variant = ready.variant

        def ranks(numbers: QParams) -> Ranks:
            return measure.ranks(bake(variant.student, numbers))

        free = ready.learn(recipe)
        report(f"label-free, seed {seed}", free)
        labelled = {}
        budget = Budget(
            epochs=recipe.epochs or EPOCHS,
            shard_size=recipe.batch_size or Budget().shard_size,
            max_seconds=recipe.max_minutes * 60,
            seed=seed,
        )
        for rate in rates:
            found = learn_labelled(
                variant,
                ready.quantize.targets.train,
                set(recipe.learn),
                labels[train],
                replace(budget, lr=rate),
            )
            report(f"labelled at {rate}, seed {seed}", found)
            labelled[rate] = ranks(found.qparams)
        return Outcome(
            measure.ranks(original), ranks(variant.qparams), ranks(free.qparams), labelled
        )


def report(title: str, learned: Learned) -> None:
    """How a training went, on stderr."""
    scores = ", ".join(f"{score:.4f}" for score in learned.history)
    print(
        f"  {title}: {learned.seconds:.0f} s, {learned.start_score:.4f} to {scores}",
        file=sys.stderr,
        flush=True,
    )


def top1(ranks: Ranks) -> float:
    """In percent."""
    return 100 * float(ranks.right.mean())


def difference(first: Ranks, second: Ranks) -> tuple[float, float]:
    """Paired difference of two models in points, and its standard error."""
    metrics = paired_metrics(first, second)
    return float(metrics["drop"] or 0.0), float(metrics["drop_error"] or 0.0)


def table(outcomes: dict[int, Outcome], rates: Sequence[float]) -> list[str]:
    """A line for each seed, and their mean."""
    means = {r: statistics.mean(top1(o.labelled[r]) for o in outcomes.values()) for r in rates}
    best = max(rates, key=lambda rate: means[rate])
    heads = [f"labelled, {rate:g}" for rate in rates]
    heads = ["seed", "original", "before", "drop before", "label-free", *heads]
    lines = [
        f"| {' | '.join(heads)} | label-free − labelled at {best:g} (± s.e.) |",
        "|" + "---|" * (len(heads) + 1),
    ]
    columns = []
    for seed, found in outcomes.items():
        gap, error = difference(found.free, found.labelled[best])
        row = [
            top1(found.original),
            top1(found.before),
            difference(found.original, found.before)[0],
        ]
        row += [top1(found.free), *(top1(found.labelled[rate]) for rate in rates)]
        columns.append([*row, gap, error**2])
        lines.append(
            f"| {seed} | {' | '.join(f'{x:.2f}' for x in row)} | {gap:+.2f} ± {error:.2f} |"
        )
    *row, gap, square = (statistics.mean(column) for column in zip(*columns, strict=True))
    error = (square / len(outcomes)) ** 0.5
    lines.append(f"| mean | {' | '.join(f'{x:.2f}' for x in row)} | {gap:+.2f} ± {error:.2f} |")
    return lines


def main() -> None:
    """Print a table for each case, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES), help="cases")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", default="0.0005,0.001,0.002", help="of the rival")
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--centroids", type=int, help="in the place of each case's own count")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    subject = subjects(options.assets)["resnet20"]
    lines: list[str] = []
    for name in options.names:
        recipe = replace(CASES[name], epochs=options.epochs, batch_size=Budget().shard_size)
        recipe = replace(recipe, codebook=options.centroids or recipe.codebook)
        outcomes = {
            seed: outcome(subject, recipe, rates, seed, options.images)
            for seed in map(int, options.seeds.split(","))
        }
        found = [f"{name}, K = {recipe.codebook}", "", *table(outcomes, rates), ""]
        print("\n".join(found), flush=True)
        lines += found
    if options.out:
        options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
