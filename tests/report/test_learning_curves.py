from __future__ import annotations

import json

import pytest

from onnxq.report.sections import learning_curves
from onnxq.verify.metrics import Metrics

LEARNING = {"unit": "error", "start_score": 0.4}
CURVE = {"minutes": [0.5, 1.0, 2.0], "scores": [0.3, None, 0.2], "agreement": [None, 91.0, 93.0]}


def test_error_and_agreement_are_drawn_against_minutes():
    (error, drawn), (agreement, other) = learning_curves(
        Metrics(1, 1, learning=LEARNING, curve=CURVE)
    )
    assert (error, agreement) == ("held-out error", "held-out agreement, percent")
    points = [tuple(map(float, p.split(","))) for p in drawn.lines[0].path.split()]
    assert points == [(0, 0), (160, 70), (640, 140)]
    points = [tuple(map(float, p.split(","))) for p in other.lines[0].path.split()]
    assert points == [(0, 140), (640, 0)]


@pytest.mark.parametrize("curve", [{}, {"minutes": [0.5], "scores": [None], "agreement": [90.0]}])
def test_one_point_is_no_curve(curve):
    assert learning_curves(Metrics(1, 1, learning=LEARNING, curve=curve)) == []


def test_the_clock_is_not_in_the_file():
    metrics = Metrics(1, 1, learning=LEARNING, curve=CURVE, synthesis={"minutes": [1.0]})
    assert json.loads(metrics.to_json())["curve"] == CURVE
    assert "minutes" not in metrics.to_metadata()
