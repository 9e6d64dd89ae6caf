"""What each step of the method gives: accuracy, size and latency on real models.

    python benchmarks/accuracy.py [SUBJECT ...] [--out FILE]

Each row adds one step to the row above it. Learning and choosing see unlabelled images
alone; labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, measured, subjects

from onnxq import Recipe

STEPS: dict[str, dict[str, object]] = {
    "max": {"calibration": "max", "equalize": False, "bias_correction": False, "learn": ("none",)},
    "mse": {"equalize": False, "bias_correction": False, "learn": ("none",)},
    "+ equalization": {"bias_correction": False, "learn": ("none",)},
    "+ bias correction": {"learn": ("none",)},
    "+ learned thresholds": {},
}
SETTINGS: dict[str, dict[str, object]] = {
    "per-channel": {},
    "per-tensor": {"granularity": "per-tensor"},
    "per-tensor, symmetric": {"granularity": "per-tensor", "symmetric": True},
    "weight-only": {"activation_bits": None},
}
RUNS = (
    ("resnet20", "per-channel"),
    ("shufflenet", "per-channel"),
    ("mobilenet", "per-channel"),
    ("mobilenet", "per-tensor"),
    ("mobilenet", "per-tensor, symmetric"),
    ("darknet", "per-channel"),
    ("resnet20", "weight-only"),
    ("darknet", "weight-only"),
)
HEADER = (
    "| model | setting | step | top-1 | drop (± s.e.) | agreement | KL | SQNR dB | size | "
    "latency | seconds |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Run:
    """One model under one setting."""

    subject: Subject
    setting: str

    def row(self, step: str, samples: int) -> str:
        """Compress, evaluate, and write a line of the table."""
        options = {
            **SETTINGS[self.setting],
            **STEPS[step],
            "samples": samples,
            "max_minutes": 60.0,
            "effort": "max",
            "fallback": False,
        }
        recipe = Recipe(**options)  # type: ignore[arg-type]  # options come from a table
        result, found, seconds = measured(self.subject, recipe)
        metrics = result.metrics
        return (
            f"| {self.subject.title} | {self.setting} | {step} | {found.top1:.2f} | "
            f"{found.drop:.2f} ± {found.drop_error:.2f} | {found.agreement:.2f} | "
            f"{found.kl:.5f} | {next(iter(found.sqnr_db.values())):.2f} | "
            f"{metrics.ratio:.3f} | {metrics.latency_ratio:.2f} | {seconds:.0f} |"
        )


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="subjects; none means all")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated")
    parser.add_argument("--settings", default="", help="comma-separated prefixes; all by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = subjects(options.assets)
    lines = [HEADER]
    print(HEADER, flush=True)
    for name, setting in RUNS:
        if (options.names and name not in options.names) or (
            options.settings and setting not in options.settings.split(";")
        ):
            continue
        for step in options.steps.split(","):
            lines.append(Run(found[name], setting).row(step, options.samples))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
