"""How long learning takes: seconds for a run, and a training step against the forward pass.

    python benchmarks/learning_speed.py [SUBJECT] [--epochs N]

The step and the float forward pass take the same batch on the same cores, in turns; the
ratio is that of the medians.
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

from onnxq import Recipe
from onnxq.learn.engine import Engine
from onnxq.learn.loss import LOSS
from onnxq.learn.objective import choose_objective
from onnxq.learn.threshold_scales import ThresholdScales
from onnxq.progress import Silent
from onnxq.rewrite.quantizers import student_feeds
from onnxq.run import Run
from onnxq.session import SessionPool

BATCH, SHARDS, ROUNDS = 128, 2, 9


def main() -> None:
    """Print the ratio of a step, then the seconds of a whole run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet20")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    subject = subjects(options.assets)[options.name]
    run = Run(subject.model, Recipe(epochs=options.epochs, equalize=False), Silent())
    run.load(subject.unlabelled, subject.preprocess)
    with tempfile.TemporaryDirectory() as folder:
        variant = run.prepare(Path(folder))
        scales = ThresholdScales(variant.student.plan, variant.quantizers, variant.extremes())
        objective = choose_objective(run.train_outputs, distil=False)
        loss_model = objective.attach(variant.student.model)
        engine = Engine(loss_model, scales.parameter_names(), LOSS)
        feeds = student_feeds(variant.student.plan, variant.quantizers, variant.student.sources)
        rest = {k: v for k, v in feeds.items() if k not in engine.trainable}
        size = options.batch // SHARDS
        positions = np.arange(options.batch)
        shards = list(run.train_outputs.batches(positions, size))
        forward = SessionPool(variant.model)
        names = {v.name for v in variant.model.graph.inputs}
        plain = [{k: v for k, v in shard.items() if k in names} for shard in shards]
        times: dict[str, list[float]] = {"forward": [], "step": []}
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(forward.map(plain))
            middle = time.perf_counter()
            engine.gradients(feeds, [{**shard, **rest} for shard in shards])
            times["forward"].append(middle - start)
            times["step"].append(time.perf_counter() - middle)
        step, plain_pass = (statistics.median(times[k]) for k in ("step", "forward"))
        print(
            f"{subject.title}: step of {options.batch} images {1000 * step:.0f} ms, forward "
            f"{1000 * plain_pass:.0f} ms, ratio {step / plain_pass:.2f}"
        )
        learned = run.learn(variant, None, False)
    print(
        f"{subject.title}: {options.epochs} epochs, {learned.images} images in "
        f"{learned.seconds:.1f} s ({learned.images / learned.seconds:.0f} images/s), held-back "
        f"error {learned.start_score:.5f} -> {learned.score:.5f} (epoch {learned.epoch})"
    )


if __name__ == "__main__":
    main()
