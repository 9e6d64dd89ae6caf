"""The time limit of a run: what is reserved, what is left out, and what is said about it."""

from __future__ import annotations

import math

import pytest

from onnxq.progress import Silent
from onnxq.runtime.clock import (
    CORRECTION,
    LEAST_SAMPLES,
    PASS,
    TIME_RAN_OUT,
    VERIFY_PASSES,
    Clock,
    TimeLeft,
    cuts,
)


class Now:
    """A clock that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


def test_all_that_a_run_does_counts(now):
    clock = Clock(2.0, now=now)
    assert clock.left() == 120.0 and clock.left(0.5) == 60.0
    now.seconds = 50.0
    assert clock.left() == 70.0 and clock.left(0.5) == 10.0
    now.seconds = 500.0
    assert clock.left() == 0.0


def test_the_time_of_the_last_stages_is_reserved(now):
    clock = Clock(10.0, now=now)
    assert clock.fit(100, 0.1) == 100
    for seconds in (7.0, 4.0):
        with clock.timed(CORRECTION):
            now.seconds += seconds
    # One pass takes 10 seconds, the longer correction 7; a twentieth is for the rest.
    assert clock.seconds(PASS) == pytest.approx(10.0)
    assert clock.left() == pytest.approx(600 - 11 - 7 - VERIFY_PASSES * 10 - 30)


def test_as_many_samples_as_there_is_time_for(now):
    clock = Clock(1.0, now=now)
    count = clock.fit(1000, 0.05)
    assert LEAST_SAMPLES < count < 200
    assert clock.seconds(PASS) == pytest.approx(0.05 * count)
    (note,) = cuts(["something else", *clock.notes])
    assert note.startswith(TIME_RAN_OUT) and f"{1000 - count} of 1000 samples" in note
    assert Clock(1.0, now=now).fit(1000, 5.0) == LEAST_SAMPLES
    assert Clock(1.0, now=now).fit(8, 5.0) == 8


def test_what_there_is_no_time_for_is_said_once(now):
    clock = Clock(1.0, now=now)
    with clock.timed("form"):
        now.seconds += 25.0
    assert clock.has_time(["form"], "another form") and not clock.notes
    now.seconds += 15.0
    assert not clock.has_time(["form"], "another form")
    assert not clock.has_time(["form"], "another form")
    assert clock.notes == [
        f"{TIME_RAN_OUT}: the run went without another form; --max-minutes gives more"
    ]


def test_what_is_reserved_is_left_out_when_only_verification_has_time(now):
    clock = Clock(1.0, now=now)
    clock.fit(40, 0.1)
    now.seconds = 60.0 - VERIFY_PASSES * 4 - 1
    assert not clock.is_over("bias correction") and not clock.notes
    now.seconds += 2
    assert clock.is_over("bias correction") and "without bias correction" in clock.notes[0]


def test_without_a_limit_there_is_always_time(now):
    clock = Clock(now=now)
    assert clock.fit(10**9, 10.0) == 10**9
    assert clock.left() == clock.left(0.5) == math.inf
    assert clock.has_time([PASS], "anything")


def test_progress_tells_the_time_left_as_soon_as_it_is_known(now):
    told: list[str] = []

    class Told(Silent):
        def at(self, done: int, text: str = "") -> None:
            told.append(text)

    clock = Clock(10.0, now=now)
    progress = TimeLeft(Told(), clock)
    progress.start("calibrate", 2)
    progress.at(1)
    clock.fit(100, 0.03)
    progress.at(1)
    now.seconds = 90.0
    progress.at(2, "block 1")
    now.seconds = 500.0
    progress.at(2)
    assert told == ["", "about 2 min left", "block 1; about 30 s left", ""]
