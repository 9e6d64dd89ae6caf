"""The time limit of a whole run, and about how long the rest of it takes.

The last stages can't be left out: their time is reserved, by what the same work took before. What
ends for lack of time says so in a note that begins with `TIME_RAN_OUT`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from onnxq.progress import Progress

TIME_RAN_OUT = "time ran out"
"""How the note begins of each stage that `--max-minutes` ended."""

PASS, CALIBRATION, CORRECTION = "pass", "calibration", "bias correction"
"""Blocks whose time is measured: all samples through the float model, calibrating a form of it,
correcting its biases."""

VERIFY_PASSES = 3.0
"""Time of verification and export, in passes of all samples through the float model."""
RESERVED_SHARE = 0.05
"""Share of the limit that is reserved beside what was measured."""

LEAST_PASSES = 12.0
"""Time of a run that learns nothing, in passes."""
EXPECTED_PASSES: Mapping[str, float] = {"fast": 15.0, "default": 40.0, "max": 120.0}
"""Time of a run by its effort, in passes, about; more than it counts, since students are slower."""

LEAST_SAMPLES = 32
"""Samples that are used however little time there is."""

MINUTE = 60.0


class Clock:
    """The time limit of one run, which begins now.

    Args:
        minutes: the limit.
        effort: says how long the run is expected to take.
        now: returns seconds.

    Attributes:
        notes: sentences on what was left out.
    """

    def __init__(
        self,
        minutes: float = math.inf,
        effort: str = "default",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._began = now, now()
        self._limit, self._effort = MINUTE * minutes, effort
        self._longest: dict[str, float] = {}
        self._expected, self.notes = math.inf, list[str]()

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._now() - self._began

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a share of the time, without those reserved for the last stages."""
        if math.isinf(self._limit):
            return math.inf
        return max(0.0, share * self._limit - self.elapsed() - self._reserved())

    def has_time(self, blocks: Sequence[str], what: str) -> bool:
        """Whether there is time to do blocks again; if not, a note says what was left out."""
        if self.left() > sum(map(self.seconds, blocks)):
            return True
        self._cut(what)
        return False

    def is_over(self, what: str) -> bool:
        """Whether there is time for verification alone; a note says what was left out then."""
        if self.elapsed() + VERIFY_PASSES * self.seconds(PASS) < self._limit:
            return False
        self._cut(what)
        return True

    def seconds(self, block: str) -> float:
        """The longest that a block took; 0 where it has not been done."""
        return self._longest.get(block, 0.0)

    @contextmanager
    def timed(self, block: str) -> Iterator[None]:
        """Measure a block."""
        began = self._now()
        yield
        self._measured(block, self._now() - began)

    def fit(self, samples: int, seconds: float) -> int:
        """How many samples a run has time for, at least `LEAST_SAMPLES` or all.

        Args:
            samples: number of samples.
            seconds: what one of them takes in the float model.
        """
        passes = EXPECTED_PASSES[self._effort] * seconds * samples
        self._expected = self.elapsed() + passes
        rest = self._limit * (1 - RESERVED_SHARE) - self.elapsed()
        needed = LEAST_PASSES * seconds
        count = samples
        if samples * needed > rest:
            count = min(samples, max(int(rest / needed), LEAST_SAMPLES))
        self._longest[PASS] = seconds * count
        if count < samples:
            self._cut(f"{samples - count} of {samples} samples")
        return count

    def text(self) -> str:
        """About how long the run goes on, in words; '' where that is not known."""
        rest = min(self._expected, self._limit) - self.elapsed()
        if not math.isfinite(self._expected) or rest <= 0:
            return ""
        minutes = rest / MINUTE
        return f"about {minutes:.0f} min" if minutes >= 1.5 else f"about {max(rest, 1.0):.0f} s"

    def _reserved(self) -> float:
        if PASS not in self._longest:
            return 0.0
        stages = self.seconds(CORRECTION) + VERIFY_PASSES * self.seconds(PASS)
        return stages + RESERVED_SHARE * self._limit

    def _cut(self, what: str) -> None:
        note = left_out(what)
        if note not in self.notes:
            self.notes.append(note)

    def _measured(self, block: str, seconds: float) -> None:
        self._longest[block] = max(self.seconds(block), seconds)


def left_out(what: str) -> str:
    """The note that something was left out for lack of time."""
    return f"{TIME_RAN_OUT}: the run went without {what}; --max-minutes gives more"


def cuts(notes: Iterable[str]) -> list[str]:
    """The notes of what ended for lack of time."""
    return [note for note in notes if note.startswith(TIME_RAN_OUT)]


class TimeLeft:
    """A listener that passes everything on, with the time that the run still takes.

    Args:
        listener: the listener.
        clock: of the run.
    """

    def __init__(self, listener: Progress, clock: Clock) -> None:
        self._listener, self._clock = listener, clock

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._listener.start(stage, total)

    def at(self, done: int, text: str = "") -> None:
        """`done` steps of the stage are finished; `text` adds details."""
        left = self._clock.text()
        self._listener.at(done, "; ".join(filter(None, [text, left and f"{left} left"])))

    def finish(self) -> None:
        """The stage has ended."""
        self._listener.finish()
