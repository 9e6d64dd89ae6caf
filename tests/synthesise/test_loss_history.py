from __future__ import annotations

import numpy as np
import pytest

from onnxq.synthesise import distilled
from onnxq.synthesise.distilled import LossHistory, history_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(distilled.time, "perf_counter", lambda: now[0])
    return now


def filled(clock: list[float], values: list[float], seconds: float) -> LossHistory:
    found = LossHistory()
    for value in values:
        clock[0] += seconds
        found.add({"bn": value, "inception": -value})
    return found


def test_each_loss_has_the_time_at_which_its_step_began(clock):
    found = filled(clock, [3.0, 2.0, 1.0], 30.0)
    assert found.by_kind == {"bn": [3.0, 2.0, 1.0], "inception": [-3.0, -2.0, -1.0]}
    assert found.minutes == [0.0, 0.5, 1.0]
    assert LossHistory().by_kind == {}


def test_other_images_take_their_time_and_have_their_share(clock):
    two, one = filled(clock, [3.0, 1.0, 0.5], 60.0), filled(clock, [9.0, 4.0], 30.0)
    found = two.joined(one, 1 / 3)
    assert found.by_kind["bn"] == pytest.approx([5.0, 2.0])
    assert found.minutes == [0.0, 1.5]


def test_a_clock_goes_on_where_it_was_stopped(clock):
    found = filled(clock, [3.0, 2.0], 30.0)
    clock[0] = 9000.0
    again = history_of({name: np.copy(array) for name, array in found.arrays().items()})
    assert (again.losses, again.seconds) == (found.losses, found.seconds)
    for _ in range(2):
        clock[0] += 6.0
        again.add({"bn": 1.0, "inception": 0.0})
    assert again.seconds == [0.0, 30.0, 30.0, 36.0]
