"""How long learning takes: seconds for a run, and a training step against the forward pass.

    python benchmarks/learning_speed.py [SUBJECT] [--epochs N] [--bits 4] [--learn steps,weights]

The step and the float forward pass take the same batch on the same cores, in turns; the
ratio is that of the medians. A step is all that training does for a batch: numbers, gradients,
chain rule, optimizer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from models import ASSETS, subjects
from prepared import prepare

from onnxq import Recipe
from onnxq.engine import Engine
from onnxq.learn.train import Trained, make_parts
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.train.budget import Budget
from onnxq.train.objective import LOSS

BATCH, SHARDS, ROUNDS = 128, 2, 9


def main() -> None:
    """Print the ratio of a step, then the seconds of a whole run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet20")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--learn", default="thresholds")
    options = parser.parse_args()
    subject = subjects(options.assets)[options.name]
    learns = tuple(options.learn.split(","))
    recipe = Recipe(
        epochs=options.epochs,
        equalize=False,
        weight_bits=options.bits,
        activation_bits=options.bits,
        learn=learns,
    )
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare(subject.model, subject.unlabelled, recipe, Path(folder), subject.preprocess)
        variant, targets = ready.variant, ready.quantize.targets
        student, start = variant.student, variant.qparams
        ranges, elements = variant.full_ranges(), variant.elements()
        parts = make_parts(set(learns), student.plan, start, ranges, elements)
        trained = Trained(parts, student.plan, start)
        optimizer = Budget().make_optimizer(trained)
        objective = targets.objective
        engine = Engine(objective.attach(student.model), trained.names, LOSS)

        def step(shards: list[Arrays]) -> None:
            now = trained.qparams()
            feeds = student.feeds(now)
            rest = {k: v for k, v in feeds.items() if k not in engine.trainable}
            _, found = engine.gradients(feeds, [{**shard, **rest} for shard in shards])
            optimizer.step(trained.values, trained.gradients(found, now))
            trained.project()

        size = options.batch // SHARDS
        positions = np.arange(options.batch)
        shards = list(targets.train.batches(size, positions))
        forward = SessionPool(variant.model)
        names = {v.name for v in variant.model.graph.inputs}
        plain = [{k: v for k, v in shard.items() if k in names} for shard in shards]
        times: dict[str, list[float]] = {"forward": [], "step": []}
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(forward.map(plain))
            middle = time.perf_counter()
            step(shards)
            times["forward"].append(middle - start)
            times["step"].append(time.perf_counter() - middle)
        whole, plain_pass = (statistics.median(times[k]) for k in ("step", "forward"))
        print(
            f"{subject.title}: step of {options.batch} images {1000 * whole:.0f} ms, forward "
            f"{1000 * plain_pass:.0f} ms, ratio {whole / plain_pass:.2f}"
        )
        learned = ready.learn(recipe)
    print(
        f"{subject.title}: {options.epochs} epochs, {learned.images} images in "
        f"{learned.seconds:.1f} s ({learned.images / learned.seconds:.0f} images/s), held-out "
        f"error {learned.start_score:.5f} -> {learned.score:.5f} (epoch {learned.epoch})"
    )


if __name__ == "__main__":
    main()
