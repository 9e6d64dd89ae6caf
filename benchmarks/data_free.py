"""Compression without data: made images against random noise and against real images.

    python benchmarks/data_free.py CASE ... [--sources noise,made,real] [--samples N] [--out FILE]

The same recipe on samples of each source. No real image is read before `evaluate`, but by the
source that is named so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, subjects

from onnxq import Recipe, compress, evaluate
from onnxq.load.inputs import input_specs
from onnxq.load.model import load_model
from onnxq.pipeline import Result
from onnxq.synthesise.space import image_space
from onnxq.verify.evaluate import Evaluation

HEADER = (
    "| model | bits | samples | source | seed | top-1 | drop (± s.e.) | agreement | KL | SQNR dB | "
    "minutes |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


DEFAULT = Recipe()


@dataclass(frozen=True)
class Case:
    """A model at some widths."""

    subject: str
    bits: tuple[int, int]
    recipe: Recipe = DEFAULT


LEARNED = Recipe(learn=("steps", "weights"), spare=False, first_last_bits=8, epochs=4)

CASES = {
    "resnet20-w8a8": Case("resnet20", (8, 8)),
    "resnet20-w6a6": Case("resnet20", (6, 6), LEARNED),
    "resnet20-w4a4": Case("resnet20", (4, 4), LEARNED),
    "resnet20-w3a3": Case("resnet20", (3, 3), LEARNED),
    "shufflenet-w8a8": Case("shufflenet", (8, 8)),
    "mobilenet-w8a8": Case("mobilenet", (8, 8)),
}


def measure(
    subject: Subject, source: str, recipe: Recipe, folder: Path
) -> tuple[Result, Evaluation]:
    """A subject compressed with samples of one source, then evaluated on its labels."""
    out, preprocess = folder / "out.onnx", subject.preprocess
    data: Path | None = subject.unlabelled
    if source == "noise":
        data = folder / "noise.npz"
        _save_noise(subject, recipe, data)
    elif source == "made":
        data, recipe = None, replace(recipe, data_free=True)
    result = compress(subject.model, data, recipe, out=out, preprocess=preprocess)
    return result, evaluate(out, subject.labelled, subject.model, preprocess=preprocess)


def _save_noise(subject: Subject, recipe: Recipe, path: Path) -> None:
    """The noise that made images start from."""
    space = image_space(input_specs(load_model(subject.model)), subject.preprocess)
    noise = space.noise(np.random.default_rng(recipe.seed), recipe.samples)
    np.savez(path, **{space.name: noise})


def row(case: Case, subject: Subject, source: str, recipe: Recipe) -> str:
    """Compress, evaluate, and write a line of the table."""
    weight_bits, activation_bits = case.bits
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, found = measure(subject, source, recipe, Path(folder))
    minutes = (time.monotonic() - began) / 60
    for note in result.figures.notes:
        print(
            f"{subject.title} W{weight_bits}A{activation_bits}, {source}: {note}", file=sys.stderr
        )
    drop, sqnr = f"{found.drop:.2f} ± {found.drop_error:.2f}", next(iter(found.sqnr_db.values()))
    cells = [
        subject.title,
        f"W{weight_bits}A{activation_bits}",
        result.figures.samples,
        source,
        recipe.seed,
        f"{found.top1:.2f}",
        drop,
        f"{found.agreement:.2f}",
        f"{found.kl:.4f}",
        f"{sqnr:.1f}",
        f"{minutes:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--sources", default="noise,made,real")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--max-minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in options.cases:
        case = CASES[name]
        recipe = replace(
            case.recipe,
            weight_bits=case.bits[0],
            activation_bits=case.bits[1],
            samples=options.samples,
            max_minutes=options.max_minutes,
            seed=options.seed,
        )
        subject = subjects(options.assets)[case.subject]
        for source in options.sources.split(","):
            lines.append(row(case, subject, source, recipe))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
