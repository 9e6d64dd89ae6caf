"""The paper's own recipe (Thonglek et al., 2020) on MobileNet v1, on data of another distribution.

    python benchmarks/paper_recipe.py [COUNT ...] [--bias-centroids 1,none] [--out FILE]

The COUNT largest layers become codebooks of K float centroids and share one bias; all others stay
float and are retrained. The unlabelled images are of other classes than the labelled ones, which
`evaluate` reads afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, subjects
from prepared import prepare

from onnxq import Recipe, evaluate
from onnxq.export.save import save_model
from onnxq.options.recipe import LayerOverride
from onnxq.pipeline import plan_model
from onnxq.train.held_out import Learned

OTHER_CLASSES = "s*.jpg"
NONE = "none"
HEADER = (
    "| layers at K | their weights | biases | retrained | held-out error | top-1 | "
    "drop (± s.e.) | agreement | SQNR dB | file | deflated |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def recipe_of(
    subject: Subject, count: int, bias: str, options: argparse.Namespace
) -> tuple[Recipe, float]:
    """The recipe, and the share of the weights in the `count` largest layers."""
    layers = plan_model(subject.model).plan.layers.values()
    # Of equal layers the later ones, as in the paper.
    ordered = sorted(reversed(layers), key=lambda spec: -spec.parameters)
    recipe = Recipe(
        codebook=options.centroids,
        activation_bits=None,
        bias_centroids=None if bias == NONE else int(bias),
        learn=("float-layers",),
        samples=options.samples,
        epochs=options.epochs,
        max_minutes=options.max_minutes,
        layers=tuple(LayerOverride(spec.name, keep_float=True) for spec in ordered[count:]),
    )
    largest = sum(spec.parameters for spec in ordered[:count])
    return recipe, largest / sum(spec.parameters for spec in ordered)


def rows(
    subject: Subject, count: int, bias: str, data: Path, options: argparse.Namespace
) -> Iterator[str]:
    """Lines of the table, before retraining and after it."""
    recipe, share = recipe_of(subject, count, bias, options)
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare(subject.model, data, recipe, Path(folder), subject.preprocess)
        variant = ready.variant
        start = Learned(variant.score, variant.score, qparams=variant.qparams)
        title = f"{count} largest | {100 * share:.0f} % | {'own' if bias == NONE else bias}"
        for rate in (None, *options.rates):
            learned = start if rate is None else ready.learn(replace(recipe, lr=rate))
            final = ready.final(learned)
            model, metrics = ready.export(final)
            out = Path(folder) / "out.onnx"
            save_model(model, out)
            found = evaluate(out, subject.labelled, subject.model, preprocess=subject.preprocess)
            retrained = "no" if rate is None else f"at {rate:g}"
            yield (
                f"| {title} | {retrained} | {final.score:.4f} | {found.top1:.1f} | "
                f"{found.drop:.1f} ± {found.drop_error:.1f} | {found.agreement:.1f} | "
                f"{next(iter(found.sqnr_db.values())):.1f} | {metrics.ratio:.3f} | "
                f"{metrics.shipped_after / metrics.shipped_before:.3f} |"
            )
            if learned.history:
                each, scores = learned.seconds / len(learned.history), learned.history
                print(f"  {each:.1f} s an epoch, held-out errors {scores}", file=sys.stderr)


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=[1, 2, 8], help="largest layers")
    parser.add_argument("--subject", default="mobilenet")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--centroids", type=int, default=32)
    parser.add_argument("--bias-centroids", default="1,none", help="comma-separated; none: own")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--rates", default="0.0001", help="of learning, comma-separated")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.rates = [float(rate) for rate in options.rates.split(",")]
    subject = subjects(options.assets)[options.subject]
    lines = [HEADER]
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for image in sorted(subject.unlabelled.glob(OTHER_CLASSES)):
            (Path(folder) / image.name).symlink_to(image.resolve())
        for count in options.counts:
            for bias in options.bias_centroids.split(","):
                for line in rows(subject, count, bias, Path(folder), options):
                    lines.append(line)
                    print(line, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
