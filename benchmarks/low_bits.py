"""Low bits: accuracy, size and latency on real models.

    python benchmarks/low_bits.py [SUBJECT ...] [--widths 8/8,4/8] [--learn rounding] [--out FILE]

Everything is chosen with unlabelled images; labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, measured, subjects

from onnxq import Recipe

HEADER = (
    "| model | weights | activations | learned | top-1 | drop (± s.e.) | agreement | SQNR dB | "
    "file | latency | integer layers | CPU s |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(subject: Subject, widths: str, learn: str, options: argparse.Namespace) -> str:
    """Compress, evaluate, and write a line of the table."""
    weight_bits, activation_bits = widths.split("/")
    recipe = Recipe(
        weight_bits=int(weight_bits),
        activation_bits=int(activation_bits),
        learn=tuple(learn.split("+")),
        samples=options.samples,
        max_minutes=options.max_minutes,
        spare=options.spare,
    )
    result, found, seconds = measured(subject, recipe, clock=time.process_time)
    figures = result.figures
    for note in figures.notes:
        print(f"{widths}: {note}", file=sys.stderr)
    return (
        f"| {subject.title} | {weight_bits} | {activation_bits} | {learn} | "
        f"{found.top1:.2f} | "
        f"{found.drop:.2f} ± {found.drop_error:.2f} | {found.agreement:.2f} | "
        f"{next(iter(found.sqnr_db.values())):.1f} | {figures.ratio:.3f} | "
        f"{figures.latency_ratio:.2f} | {figures.integer_layers} of {figures.layers} | "
        f"{seconds:.0f} |"
    )


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet20"], help="subjects")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--widths", default="8/8,4/8,3/8,4/4", help="weights/activations")
    parser.add_argument("--learn", default="auto", help="runs; what one learns is joined by '+'")
    parser.add_argument("--spare", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = subjects(options.assets)
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in options.names:
        for widths in options.widths.split(","):
            for learn in options.learn.split(","):
                lines.append(row(found[name], widths, learn, options))
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
