"""Low bits: each method on top of the ones before it, on real models.

    python benchmarks/low_bits.py CASE ... [--stages nearest,auto] [--seeds 0,1,2] [--out FILE]

Everything is chosen with unlabelled images; labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, measured, subjects

from onnxq import Recipe
from onnxq.options.table import Augment

HEADER = (
    "| model | bits | samples | stage | seed | top-1 | drop (± s.e.) | agreement | SQNR dB | "
    "file | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)

PLAIN = {"equalize": False, "bias_correction": False, "learn": ("none",)}
STAGES: dict[str, dict[str, object]] = {
    "nearest": {**PLAIN, "calibration": "max"},
    "clip": PLAIN,
    "equalization": {"learn": ("none",)},
    "thresholds": {"learn": ("thresholds",)},
    "rounding": {"learn": ("rounding",)},
    "steps + weights": {"learn": ("steps", "weights")},
    "weights": {"learn": ("weights",)},
    "steps": {"learn": ("steps",)},
    "distillation": {"learn": ("rounding", "steps", "weights"), "loss": "distillation"},
    "sgd": {"learn": ("rounding", "steps", "weights"), "optimizer": "sgd"},
    "auto": {},
}
"""What each stage changes in the recipe of a case."""


@dataclass(frozen=True)
class Case:
    """A model at some widths, learned on so many samples.

    Attributes:
        subject: its short name.
        bits: of weights and activations.
        samples: unlabelled images.
        max_minutes: the limit of learning.
        epochs: passes; None means the default.
        augment: how images are changed in each pass.
    """

    subject: str
    bits: tuple[int, int]
    samples: int
    max_minutes: float = 30.0
    epochs: int | None = None
    augment: tuple[Augment, ...] = ("auto",)


CASES = {
    "resnet20-w4a8": Case("resnet20", (4, 8), 512),
    "resnet20-w3a8": Case("resnet20", (3, 8), 512),
    "resnet20-w2a8": Case("resnet20", (2, 8), 10_000),
    "resnet20-w4a4": Case("resnet20", (4, 4), 10_000, 90.0, 16, ("flip", "shift")),
    "resnet20-w4a4-short": Case("resnet20", (4, 4), 2_500),
    "resnet20-w3a3": Case("resnet20", (3, 3), 10_000, 90.0, 24, ("flip", "shift")),
    "shufflenet-w4a8": Case("shufflenet", (4, 8), 2_048),
    "shufflenet-w6a6": Case("shufflenet", (6, 6), 2_048),
    "mobilenet-w4a8": Case("mobilenet", (4, 8), 1_500),
    "darknet-w8a8": Case("darknet", (8, 8), 1_500),
    "darknet-w4a8": Case("darknet", (4, 8), 1_500),
}


def row(case: Case, subject: Subject, stage: str, seed: int) -> str:
    """Compress, evaluate, and write a line of the table."""
    weight_bits, activation_bits = case.bits
    recipe = Recipe(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        samples=case.samples,
        max_minutes=case.max_minutes,
        effort="max",
        fallback=False,
        seed=seed,
    )
    recipe = replace(recipe, **STAGES[stage])  # type: ignore[arg-type]
    if {"auto", "steps", "weights"} & set(recipe.learn):
        recipe = replace(recipe, epochs=case.epochs, augment=case.augment)
    before = _cpu_seconds()
    result, found, _ = measured(subject, recipe)
    seconds = _cpu_seconds() - before
    for note in result.metrics.notes:
        print(f"{subject.title} W{weight_bits}A{activation_bits}, {stage}: {note}", file=sys.stderr)
    return (
        f"| {subject.title} | W{weight_bits}A{activation_bits} | {case.samples} | {stage} | "
        f"{seed} | {found.top1:.2f} | {found.drop:.2f} ± {found.drop_error:.2f} | "
        f"{found.agreement:.2f} | {next(iter(found.sqnr_db.values())):.1f} | "
        f"{result.metrics.ratio:.3f} | {seconds:.0f} |"
    )


def _cpu_seconds() -> float:
    """Of this process: user and system; the evaluation, some seconds, is in it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--stages", default="nearest,clip,equalization,rounding,auto")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = subjects(options.assets)
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in options.cases:
        for stage in options.stages.split(","):
            for seed in options.seeds.split(","):
                case = CASES[name]
                lines.append(row(case, found[case.subject], stage, int(seed)))
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
