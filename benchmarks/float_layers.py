"""Retraining the layers left float (--learn float-layers): what an epoch costs, what it gives.

    python benchmarks/float_layers.py [CASE ...] [--samples N] [--out FILE]

An epoch with the quantized layers frozen is held against one that trains every layer but the
smallest, in turns on the same cores. Data of another kind: ImageNet images of other classes,
for CIFAR models made as small. Labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, subjects
from prepared import prepare

from onnxq import Recipe, compress, evaluate
from onnxq.learn.learn import learn
from onnxq.options.recipe import LayerOverride
from onnxq.pipeline import plan_model
from onnxq.train.budget import Budget

ROUNDS = 3
OTHER_KIND = "s*.jpg"
"""The unlabelled ImageNet images of other classes than the labelled ones."""

COSTS = (
    "| case | float layers | weights in them | epoch, all layers | epoch, float layers | ratio | "
    "once before |\n|---|---|---|---|---|---|---|"
)
QUALITY = (
    "| case | retrained on | held-out error | top-1 | drop (± s.e.) | agreement | SQNR dB | file |"
    "\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Case:
    """Which layers of a subject stay float; all others are quantized."""

    subject: str
    codebook: int
    float_layers: tuple[str, ...]


RESNET_FIRST = ("/conv1/*", "/layer1/*", "/layer2/*", "/linear/*")
CASES = {
    "resnet20-last": Case("resnet20", 8, ("/layer3/layer3.2/*", "/linear/*")),
    "resnet20-first": Case("resnet20", 8, RESNET_FIRST),
    "mobilenet-last": Case("mobilenet", 32, ("conv_dw_13", "conv_pw_13", "conv_preds")),
}


def recipe_of(case: Case, options: argparse.Namespace, **more: object) -> Recipe:
    """The recipe with these layers in float, and float activations."""
    base = Recipe(
        codebook=case.codebook,
        activation_bits=None,
        exclude=case.float_layers,
        learn=("float-layers",),
        samples=options.samples,
        epochs=options.epochs,
        max_minutes=options.max_minutes,
    )
    return replace(base, **more)


def every_layer(subject: Subject, recipe: Recipe) -> Recipe:
    """All layers float but the smallest: they are all trained, from the first one on."""
    layers = plan_model(subject.model, replace(recipe, exclude=(), learn=("auto",))).plan.layers
    smallest = min(layers.values(), key=lambda spec: spec.parameters).name
    others = tuple(LayerOverride(name, keep_float=True) for name in layers if name != smallest)
    return replace(recipe, exclude=(), layers=others)


def cost_row(name: str, case: Case, options: argparse.Namespace) -> str:
    """Seconds of an epoch either way, in turns; medians."""
    subject = subjects(options.assets)[case.subject]
    recipe = recipe_of(case, options, equalize=False)
    runs: dict[str, list[tuple[float, float]]] = {"all": [], "float": []}
    with tempfile.TemporaryDirectory() as folder:
        ready = {}
        for kind, wanted in (("all", every_layer(subject, recipe)), ("float", recipe)):
            place = Path(folder) / kind
            place.mkdir()
            found = prepare(subject.model, subject.unlabelled, wanted, place, subject.preprocess)
            ready[kind] = (found.variant, found.quantize.targets.train)
        for _ in range(ROUNDS):
            for kind, (variant, train) in ready.items():
                began = time.perf_counter()
                learned = learn(variant, train, ("float-layers",), Budget(epochs=1))
                whole = time.perf_counter() - began
                runs[kind].append((learned.seconds, whole - learned.seconds))
    specs = ready["float"][0].student.plan.float_layers.values()
    weights = sum(spec.parameters for spec in specs)
    seconds = {kind: statistics.median(s for s, _ in found) for kind, found in runs.items()}
    before = statistics.median(rest for _, rest in runs["float"])
    return (
        f"| {name} | {len(specs)} | {weights:,} | {seconds['all']:.2f} s | "
        f"{seconds['float']:.2f} s | {seconds['all'] / seconds['float']:.1f} | {before:.1f} s |"
    )


def quality_rows(name: str, case: Case, options: argparse.Namespace) -> list[str]:
    """Without retraining, retrained on images of the same kind, and on others."""
    subject = subjects(options.assets)[case.subject]
    size = 32 if case.subject == "resnet20" else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        others = Path(folder) / "others"
        others.mkdir()
        for image in sorted((options.assets / "imagenet" / "unlabelled").glob(OTHER_KIND)):
            (others / image.name).symlink_to(image.resolve())
        other = replace(subject, unlabelled=others)
        if size:
            other = replace(other, preprocess=replace(subject.preprocess, resize=(size, size)))
        for title, source, learns in (
            ("nothing", subject, ("none",)),
            ("the same kind", subject, ("float-layers",)),
            ("another kind", other, ("float-layers",)),
        ):
            epochs = options.epochs if learns != ("none",) else None
            recipe = recipe_of(case, options, learn=learns, epochs=epochs)
            out = Path(folder) / "out.onnx"
            result = compress(
                source.model,
                source.unlabelled,
                recipe,
                out=out,
                preprocess=source.preprocess,
                force=True,
            )
            found = evaluate(out, subject.labelled, subject.model, preprocess=subject.preprocess)
            learning = result.metrics.learning
            rows.append(
                f"| {name} | {title} | {learning['start_score']:.4f} → {learning['score']:.4f} | "
                f"{found.top1:.2f} | {found.drop:.2f} ± {found.drop_error:.2f} | "
                f"{found.agreement:.2f} | {next(iter(found.sqnr_db.values())):.1f} | "
                f"{result.metrics.ratio:.3f} |"
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print both tables, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES), help="cases")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--skip-quality", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [COSTS]
    print(COSTS, flush=True)
    for name in options.names:
        lines.append(cost_row(name, CASES[name], options))
        print(lines[-1], flush=True)
    if not options.skip_quality:
        lines += ["", QUALITY]
        print(QUALITY, flush=True)
        for name in options.names:
            lines += quality_rows(name, CASES[name], options)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
