"""What each effort costs and gives: CPU seconds, forward passes, distance from the original.

    python benchmarks/effort.py [MODEL...] [--efforts fast,default,max] [--weight-bits N]

Each row is one `compress` on 512 unlabelled images, in this process. Labels are read afterwards, by
`evaluate`, and decide nothing. CPU seconds are user and system time of `compress` alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, measured, subjects

from onnxq import Recipe


def main() -> None:
    """Print a row of the table for each model and effort, as soon as it is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=["resnet20", "darknet", "mobilenet"])
    parser.add_argument("--efforts", default="fast,default")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--learn", help="instead of what the effort learns")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    options = parser.parse_args()
    base = Recipe(weight_bits=options.weight_bits, max_minutes=10_000)
    if options.learn:
        base = replace(base, learn=tuple(options.learn.split(",")))
    for name in options.names:
        subject = subjects(options.assets)[name]
        for effort in options.efforts.split(","):
            recipe = replace(base, effort=effort)
            result, found, seconds = measured(subject, recipe, time.process_time)
            passes = sum(row["passes"] for row in result.metrics.costs)
            learned = sum(
                row["seconds"] for row in result.metrics.costs if row["stage"].startswith("learn ")
            )
            print(
                f"| {subject.title} | W{options.weight_bits}A8 | {effort} | {seconds:.0f} | "
                f"{learned:.0f} | {passes:.1f} | {found.kl:.5f} | {found.agreement:.2f} | "
                f"{found.drop:.2f} ± {found.drop_error:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
