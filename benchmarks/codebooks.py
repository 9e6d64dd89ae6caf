"""Codebooks: size as a file and as shipped compressed, accuracy and latency on real models.

    python benchmarks/codebooks.py [SUBJECT ...] [--counts 16,32] [--out FILE]

Everything is chosen with unlabelled images; labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, measured, subjects

from onnxq import Recipe

HEADER = (
    "| model | activations | K | top-1 | drop (± s.e.) | estimated drop | agreement | SQNR dB | "
    "file | deflated | latency |\n|---|---|---|---|---|---|---|---|---|---|---|"
)
NONE = "none"


def row(subject: Subject, bits: str, count: str, options: argparse.Namespace) -> str:
    """Compress, evaluate, and write a line of the table."""
    recipe = Recipe(
        codebook=None if count == NONE else int(count),
        activation_bits=None if bits == NONE else int(bits),
        samples=options.samples,
        max_minutes=options.max_minutes,
        effort="max",
    )
    result, found, _ = measured(subject, recipe)
    metrics = result.metrics
    estimate = f"{metrics.estimated_drop:.2f} ± {metrics.estimated_drop_error:.2f}"
    activations = "float" if bits == NONE else f"{bits} bits"
    return (
        f"| {subject.title} | {activations} | {count} | {found.top1:.2f} | "
        f"{found.drop:.2f} ± {found.drop_error:.2f} | {estimate} | {found.agreement:.2f} | "
        f"{next(iter(found.sqnr_db.values())):.1f} | {metrics.ratio:.3f} | "
        f"{metrics.shipped_after / metrics.shipped_before:.3f} | {metrics.latency_ratio:.2f} |"
    )


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet20"], help="subjects")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--counts", default="none,16", help="comma-separated; none: codes")
    parser.add_argument("--bits", default="none,8", help="of activations, comma-separated")
    parser.add_argument("--max-minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = subjects(options.assets)
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in options.names:
        for bits in options.bits.split(","):
            for count in options.counts.split(","):
                lines.append(row(found[name], bits, count, options))
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
