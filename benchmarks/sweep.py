"""What a sweep costs, against half a forward pass of the float model for each candidate.

    python benchmarks/sweep.py [SUBJECT] [--images N] [--rounds N]

Every candidate changes one layer, on average in the middle of the network: half a pass is what
it must compute. Passes are counted as layers x 8 counts of centroids and 6 widths of codes, tried
or not; both are timed on the same images and the same cores, in turns. The sweep's time is all of
it: codebooks, thresholds, sessions, the float model's own pass.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, subjects
from prepared import prepare

from onnxq import Recipe
from onnxq.progress import Silent
from onnxq.runtime.session import SessionPool, available_cores
from onnxq.search.effects import COUNTS, WIDTHS
from onnxq.search.sweep import sweep_variant
from onnxq.train.teacher import MICRO_BATCH


def main() -> None:
    """Print the median of the ratios of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="resnet20")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--activation-bits", type=int, choices=(8,))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    subject = subjects(options.assets)[options.name]
    bits = options.activation_bits
    recipe = Recipe(samples=2 * options.images, activation_bits=bits, equalize=False)
    recipe = recipe.for_sweep()
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare(subject.model, subject.unlabelled, recipe, Path(folder), subject.preprocess)
    variant, samples = ready.variant, ready.held_out
    size = ready.quantize.batch_size
    pool = SessionPool(variant.model)
    feeds = list(samples.batches(MICRO_BATCH))
    passes, sweeps, ratios = [], [], []
    settings = len(COUNTS) + len(WIDTHS)
    for _ in range(options.rounds):
        before = forward(pool, feeds)
        start = time.perf_counter()
        table = sweep_variant(variant, samples, size, Silent(), synthetic=False)
        sweeps.append(time.perf_counter() - start)
        passes.append((before + forward(pool, feeds)) / 2)
        ratios.append(sweeps[-1] / (len(table.rows) * settings * passes[-1] / 2))
    tried = sum(len(row.effects) - 1 for row in table.rows)
    print(
        f"{subject.title}: {table.samples} images, {available_cores()} cores; forward pass "
        f"{statistics.median(passes):.3f} s; {len(table.rows)} layers, {tried} settings in "
        f"{statistics.median(sweeps):.1f} s; {statistics.median(ratios):.2f} times "
        f"{len(table.rows)} x {settings} half passes, "
        f"{statistics.median(ratios) * len(table.rows) * settings / tried:.2f} times those tried"
    )


def forward(pool: SessionPool, feeds: list[dict]) -> float:
    """Seconds of a forward pass, the median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        list(pool.map(feeds))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
