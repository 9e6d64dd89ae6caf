"""Compression without data: made images against random noise and against real images.

    python benchmarks/data_free.py CASE ... [--sources noise,made,generator,adversarial,real]
        [--losses default] [--learn default] [--granularity per-channel] [--minutes 45]
        [--seeds 0] [--augment auto] [--samples N] [--keep FOLDER] [--out FILE]

The same recipe on samples of each source; each list gives a row for each of its members. No real
image is read before `evaluate`, but by the source that is named so. `--minutes 5,15,45` gives the
curve of drop against minutes, `--losses is,is-bn,is-bn-adversarial` the ablation, `--learn
weights,steps+weights` fixed steps against learned ones, `--granularity per-tensor` the paper's.
Images are made once for all rows that share them; their cost is part of each row's. Source
`adversarial` is a generator that goes on learning against the student.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from made_images import Clock, Cost, make_images
from models import ASSETS, Subject, subjects

from onnxq import Recipe, compress, evaluate
from onnxq.learn.learn import learns_weights
from onnxq.load.interface import input_specs
from onnxq.load.model import load_model
from onnxq.options.table import GeneratorMode, Granularity, Learn
from onnxq.pipeline import Result, plan_model
from onnxq.synthesise.images import image_space
from onnxq.train.augment import chosen_kinds
from onnxq.verify.evaluate import Evaluation

COLUMNS = (
    "model", "bits", "weights", "samples", "source", "losses", "learned", "seed", "top-1",
    "drop (± s.e.)", "agreement", "KL", "SQNR dB", "limit, min", "minutes", "CPU s",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"

DEFAULT = "default"
GOES_ON: GeneratorMode = "adversarial"
SOURCES = ("noise", "made", "generator", GOES_ON, "real")
LOSSES: dict[str, dict[str, float]] = {
    DEFAULT: {},
    "is": {"bn": 0.0},
    "is-bn": {},
    "is-bn-adversarial": {"adversarial": 5.0},
    "bn": {"inception": 0.0},
}
"""Weights that differ from the defaults, of `inception` and `bn`."""
OF_GENERATORS = ("is-bn-adversarial",)
"""Losses that distilled images can't have: `made` leaves them out."""
LEARN: dict[str, tuple[Learn, ...]] = {
    DEFAULT: ("auto",),
    "none": ("none",),
    "weights": ("weights",),
    "steps+weights": ("steps", "weights"),
}
"""What is learned: `weights` leaves Δ fixed, `steps+weights` learns it."""


@dataclass(frozen=True)
class Case:
    """A model at some widths."""

    subject: str
    bits: tuple[int, int]


CASES = {
    "resnet20-w8a8": Case("resnet20", (8, 8)),
    "resnet20-w6a6": Case("resnet20", (6, 6)),
    "resnet20-w4a4": Case("resnet20", (4, 4)),
    "resnet20-w3a3": Case("resnet20", (3, 3)),
    "shufflenet-w8a8": Case("shufflenet", (8, 8)),
    "shufflenet-w4a8": Case("shufflenet", (4, 8)),
    "mobilenet-w8a8": Case("mobilenet", (8, 8)),
}
"""First and last layers have 8 bits where the rest has 5 or less, as always."""

FALLBACK_FROM = 8
"""Below, tensors keep the width that the case names, as in the paper."""


@dataclass(frozen=True)
class Trial:
    """One row: what the samples are, and what is done with them."""

    case: Case
    source: str
    losses: str
    learn: str
    recipe: Recipe

    @property
    def possible(self) -> bool:
        """Whether the source can have these losses."""
        if self.source in ("noise", "real", GOES_ON):
            return self.losses == DEFAULT
        return self.source == "generator" or self.losses not in OF_GENERATORS


def trials(names: Iterable[str], options: argparse.Namespace) -> Iterator[Trial]:
    """Every row that the options ask for."""
    given = ("granularity", "minutes", "seeds", "learn", "losses", "sources")
    lists = [getattr(options, each) for each in given]
    for name, *chosen in itertools.product(names, *lists):
        granularity, minutes, seed, learn, losses, source = chosen
        case = CASES[name]
        recipe = Recipe(
            weight_bits=case.bits[0],
            activation_bits=case.bits[1],
            granularity=granularity,
            fallback=min(case.bits) >= FALLBACK_FROM,
            learn=LEARN[learn],
            augment=tuple(options.augment.split(",")),
            samples=options.samples,
            max_minutes=minutes,
            effort="max",
            seed=seed,
        )
        trial = Trial(case, source, losses, learn, recipe)
        if trial.possible:
            yield trial


def measure(subject: Subject, trial: Trial, folder: Path, keep: Path) -> tuple[Result, Cost]:
    """A subject compressed with samples of one source; what that took, making them included."""
    recipe, spent = trial.recipe, Cost(0.0, 0.0)
    data: Path | None = subject.unlabelled
    if trial.source == GOES_ON:
        data = None
        recipe = replace(recipe, data_free=True, synthesis="generator", generator_mode=GOES_ON)
    elif trial.source == "noise":
        data = folder / "noise.npz"
        _save_noise(subject, recipe, data)
    elif trial.source in ("made", "generator"):
        method = "generator" if trial.source == "generator" else "distilled"
        data, spent = make_images(subject, method, LOSSES[trial.losses], recipe, keep)
        left = max(0.0, recipe.max_minutes - spent.minutes)
        # `compress` does not know of a file that its images were made.
        plan = plan_model(subject.model, recipe).plan
        kinds = chosen_kinds(recipe.augment, learns_weights(recipe.learn, plan))
        recipe = replace(recipe, max_minutes=left, augment=kinds or ("none",))
    clock = Clock()
    out = folder / "out.onnx"
    result = compress(subject.model, data, recipe, out=out, preprocess=subject.preprocess)
    rest = clock.cost()
    return result, Cost(spent.minutes + rest.minutes, spent.seconds + rest.seconds)


def _save_noise(subject: Subject, recipe: Recipe, path: Path) -> None:
    """The noise that made images start from."""
    space = image_space(input_specs(load_model(subject.model)), subject.preprocess)
    noise = space.noise(np.random.default_rng(recipe.seed), recipe.samples)
    np.savez(path, **{space.name: noise})


def row(subject: Subject, trial: Trial, keep: Path) -> str:
    """Compress, evaluate, and write a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        result, cost = measure(subject, trial, Path(folder), keep)
        found = evaluate(
            Path(folder) / "out.onnx",
            subject.labelled,
            subject.model,
            preprocess=subject.preprocess,
        )
    bits = "W{}A{}".format(*trial.case.bits)
    for note in result.metrics.notes:
        print(f"{subject.title} {bits}, {trial.source}: {note}", file=sys.stderr, flush=True)
    cells = [
        subject.title,
        bits,
        trial.recipe.granularity,
        result.metrics.samples,
        trial.source,
        trial.losses if trial.source in ("made", "generator") else "",
        trial.learn,
        trial.recipe.seed,
        *_metrics(found),
        f"{trial.recipe.max_minutes:g}",
        f"{cost.minutes:.1f}",
        f"{cost.seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _metrics(found: Evaluation) -> list[str]:
    return [
        f"{found.top1:.2f}",
        f"{found.drop:.2f} ± {found.drop_error:.2f}",
        f"{found.agreement:.2f}",
        f"{found.kl:.4f}",
        f"{next(iter(found.sqnr_db.values())):.1f}",
    ]


def main() -> None:
    """Print the table, and write it to a file where one is named, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--sources", type=_some_of(SOURCES), default="noise,made,real")
    parser.add_argument("--losses", type=_some_of(LOSSES), default=DEFAULT)
    parser.add_argument("--learn", type=_some_of(LEARN), default=DEFAULT)
    kinds = get_args(Granularity)
    parser.add_argument("--granularity", type=_some_of(kinds), default=kinds[0])
    parser.add_argument("--minutes", type=_numbers(float), default="45", help="limits of a run")
    parser.add_argument("--seeds", type=_numbers(int), default="0")
    parser.add_argument("--augment", default="auto", help="as of compress")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--keep", type=Path, help="a folder for images, to be used again")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    known = subjects(options.assets)
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        for trial in trials(options.cases, options):
            lines.append(row(known[trial.case.subject], trial, keep))
            print(lines[-1], flush=True)
            if options.out:
                options.out.write_text("\n".join(lines) + "\n")


def _numbers(kind: type[float]) -> Callable[[str], list[float]]:
    return lambda text: [kind(each) for each in text.split(",")]


def _some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            named = ", ".join(sorted(unknown))
            raise argparse.ArgumentTypeError(f"{named}: expected some of {', '.join(known)}")
        return names

    return split


if __name__ == "__main__":
    main()
