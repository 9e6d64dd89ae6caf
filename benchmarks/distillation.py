"""The digits CNN into one of half its width: images made from the teacher against real ones.

    python benchmarks/distillation.py [--sources made,real,...] [--seeds 0,1,2] [--epochs N]

The student begins untrained. No label is read before `evaluate`, and no real image but by the
source that is named so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxq import Recipe, distill, evaluate
from onnxq.distillation.result import DistillResult
from onnxq.load.interface import input_specs
from onnxq.load.model import load_model
from onnxq.synthesise.images import image_space
from onnxq.verify.evaluate import Evaluation
from tools.architectures import RESNET_WIDTHS, resnet
from tools.digits import PREPROCESS
from tools.training import untrained_model

SAMPLES = Path(__file__).parents[1] / "sample_models"
TEACHER = SAMPLES / "digits_resnet.onnx"
HALF = tuple(width // 2 for width in RESNET_WIDTHS)

SOURCES = {
    "noise": Recipe(),
    "distilled": Recipe(data_free=True, synthesis="distilled"),
    "generator": Recipe(data_free=True, synthesis="generator"),
    "adversarial": Recipe(
        data_free=True, synthesis="generator", synthesis_losses={"adversarial": 5.0}
    ),
    "real": Recipe(),
}
"""Where the samples come from, and the options that make them."""

HEADER = (
    "| source | seed | top-1 (± s.e.) | drop (± s.e.) | agreement | KL | held out: KL or error, "
    "agreement | epoch | minutes |\n|---|---|---|---|---|---|---|---|---|"
)


def measure(source: str, recipe: Recipe, folder: Path) -> tuple[DistillResult, Evaluation]:
    """A student of half the width, distilled from one source, then evaluated on the labels."""
    student, out = folder / "student.onnx", folder / "out.onnx"
    architecture = partial(resnet, widths=HALF)
    ir.save(untrained_model(architecture, "half", recipe.seed), student)
    data = {"real": SAMPLES / "digits" / "unlabelled", "noise": folder / "noise.npz"}.get(source)
    if source == "noise":
        space = image_space(input_specs(load_model(TEACHER)), PREPROCESS)
        noise = space.noise(np.random.default_rng(recipe.seed), recipe.samples)
        np.savez(folder / "noise.npz", **{space.name: noise})
    result = distill(TEACHER, student, data, recipe, out=out)
    return result, evaluate(out, SAMPLES / "digits" / "labelled", TEACHER)


def row(source: str, recipe: Recipe) -> str:
    """A line of the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, found = measure(source, recipe, Path(folder))
    metrics = result.metrics
    for note in result.notes:
        print(f"{source}, seed {recipe.seed}: {note}", file=sys.stderr)
    assert metrics.score is not None and metrics.agreement is not None
    cells = [
        source,
        recipe.seed,
        f"{found.top1:.2f} ± {found.error:.2f}",
        f"{found.drop:.2f} ± {found.drop_error:.2f}",
        f"{found.agreement:.2f}",
        f"{found.kl:.4f}",
        f"{metrics.score:.4f}, {100 * metrics.agreement:.1f}",
        f"{metrics.epoch} of {len(metrics.scores)}",
        f"{(time.monotonic() - began) / 60:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", default="distilled,real")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--loss", default=Recipe().loss)
    parser.add_argument("--augment", default="auto")
    parser.add_argument("--max-minutes", type=float, default=10.0)
    options = parser.parse_args()
    print(HEADER, flush=True)
    for source in options.sources.split(","):
        for seed in options.seeds.split(","):
            recipe = replace(
                SOURCES[source],
                seed=int(seed),
                samples=options.samples,
                epochs=options.epochs,
                batch_size=options.batch_size,
                lr=options.lr,
                loss=options.loss,
                augment=tuple(options.augment.split(",")),
                max_minutes=options.max_minutes,
            )
            print(row(source, recipe), flush=True)


if __name__ == "__main__":
    main()
