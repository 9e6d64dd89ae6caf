"""Images made once for each network, way of making and seed, and what they took."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from models import Subject

from onnxq import Recipe
from onnxq.pipeline import make_samples, read
from onnxq.progress import Silent
from onnxq.runtime.clock import Clock as TimeLimit
from onnxq.train.checkpoint import Job


@dataclass(frozen=True)
class Cost:
    """What making them took.

    Attributes:
        minutes: of the clock.
        seconds: of the CPU, of this process.
    """

    minutes: float
    seconds: float


class Clock:
    """Minutes and CPU seconds from when it is made."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _cpu_seconds()

    def cost(self) -> Cost:
        """What was taken so far."""
        minutes = (time.monotonic() - self._began) / 60
        return Cost(minutes, _cpu_seconds() - self._before)


def make_images(
    subject: Subject, method: str, losses: Mapping[str, float], recipe: Recipe, keep: Path
) -> tuple[Path, Cost]:
    """The images that `compress --data-free` would make, as a file for `--data`, and their cost.

    The same recipe gives the same images, so that those in `keep` are used again.
    """
    weights = "-".join(f"{kind}{weight:g}" for kind, weight in sorted(losses.items()))
    options = f"{recipe.samples}-{recipe.seed}-{recipe.max_minutes:g}"
    stem = "-".join(each for each in (subject.model.stem, method, weights, options) if each)
    images, cost = keep / f"{stem}.npz", keep / f"{stem}.json"
    if not cost.exists():
        made = Recipe(
            data_free=True,
            synthesis=method,
            synthesis_losses=dict(losses) or None,
            samples=recipe.samples,
            seed=recipe.seed,
            max_minutes=recipe.max_minutes,
        )
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            notes: list[str] = []
            job = Job(subject.model, None, made, Silent(), subject.preprocess)
            original, _ = read(job, notes)
            limit = TimeLimit(made.max_minutes)
            samples, synthesis = make_samples(job, original, None, Path(folder), None, limit)
            batches = list(samples.batches(64))
        np.savez(
            images, **{name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        )
        for note in [*notes, *synthesis.notes]:
            print(f"{stem}: {note}", file=sys.stderr, flush=True)
        cost.write_text(json.dumps(asdict(clock.cost())))
    return images, Cost(**json.loads(cost.read_text()))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
