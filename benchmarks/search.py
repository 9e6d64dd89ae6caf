"""The search: the smallest file within an estimated drop, and how well the estimate predicts.

    python benchmarks/search.py [SUBJECT ...] [--codebook auto|off] [--max-drop 0.5] [--out FILE]

With `--codebook off` widths of codes are searched alone, else counts of centroids too. Settings
are chosen with unlabelled images; labels are read by `evaluate` afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, measured, subjects

from onnxq import Recipe

HEADER = (
    "| model | settings found | activations | target | samples | trials | estimated drop | "
    "by divergence | true drop (± s.e.) | agreement | file | deflated | minutes |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(subject: Subject, options: argparse.Namespace) -> str:
    """Search, evaluate, and write a line of the table."""
    recipe = Recipe(
        codebook=options.codebook,
        activation_bits=None if options.bits == "none" else int(options.bits),
        max_drop=options.max_drop if options.max_size is None else None,
        max_size=options.max_size,
        samples=options.samples,
        max_minutes=options.max_minutes,
    )
    result, found, seconds = measured(subject, recipe)
    metrics, search = result.metrics, result.metrics.search
    activations = "float" if options.bits == "none" else f"{options.bits} bits"
    goal = f"{options.max_drop} points" if options.max_size is None else f"{options.max_size}"
    return (
        f"| {subject.title} | {kinds(search['settings'].values())} | {activations} | "
        f"{goal}, {'met' if search['met'] else 'missed'} | "
        f"{metrics.samples}, {metrics.held_back} held out | {len(search['trials'])} | "
        f"{metrics.estimated_drop:.2f} ± {metrics.estimated_drop_error:.2f} | "
        f"{search['points_per_nat'] * metrics.kl:.2f} | "
        f"{found.drop:.2f} ± {found.drop_error:.2f} | {found.agreement:.2f} | "
        f"{metrics.ratio:.3f} | {metrics.shipped_after / metrics.shipped_before:.3f} | "
        f"{seconds / 60:.1f} |"
    )


def kinds(labels: Iterable[str]) -> str:
    """How many layers have which kind of setting."""
    found = Counter(
        "float" if label == "float" else "codebooks" if "=" in label else "codes"
        for label in labels
    )
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))


def main() -> None:
    """Print the table, and write it to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["resnet20"], help="subjects")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--codebook", choices=("auto", "off"), default="auto")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--max-size", type=float)
    parser.add_argument("--bits", default="none", help="of activations")
    parser.add_argument("--max-minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = subjects(options.assets)
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in options.names:
        lines.append(row(found[name], options))
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
