from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from onnxq.report.sections import class_bars, contact_sheet, loss_curves
from onnxq.synthesise.images import Synthesis


@pytest.mark.parametrize(
    ("shape", "tile"), [((8, 8, 1), (64, 64)), ((32, 48, 3), (96, 64)), ((300, 200, 3), (85, 128))]
)
def test_the_sheet_shows_each_image_where_it_belongs(shape, tile):
    # Image i is grey of level 20 i, its class is drawn below it.
    pictures = np.stack([np.full(shape, 20 * i, np.uint8) for i in range(10)])
    data = contact_sheet(Synthesis("distilled", pictures=pictures, decisions=list(range(10))))
    with Image.open(io.BytesIO(data)) as sheet:
        width, height = tile
        assert sheet.size == (8 * (width + 4) + 4, 2 * (height + 16) + 4)
        for i in range(10):
            left, top = 4 + i % 8 * (width + 4), 4 + i // 8 * (height + 16)
            assert sheet.getpixel((left + width // 2, top + height // 2)) == (20 * i,) * 3
            below = sheet.crop((left, top + height, left + width, top + height + 12))
            assert below.convert("L").getextrema()[0] < 128


def test_there_is_no_sheet_of_samples_that_are_no_images():
    assert contact_sheet(Synthesis("distilled")) is None


def test_a_curve_goes_down_where_its_loss_does():
    losses = {"inception": [-1.0, -3.0, -2.0], "bn": [0.5, 0.5, 0.5]}
    tuning = {"adversarial": [-1.0, -1.5]}
    made = Synthesis("distilled", losses=losses, minutes=[0, 0.2, 0.4], tuning=tuning)
    curves = loss_curves(made)
    assert [title for title, _ in curves] == [
        "inception score loss",
        "BatchNorm statistics, KL divergence in nats",
        "adversarial loss, minus the student's cross-entropy, in training with the student",
    ]
    chart = curves[0][1]
    points = [tuple(map(float, p.split(","))) for p in chart.lines[0].path.split()]
    assert points == [(0, 0), (320, 140), (640, 70)]
    labels = dict((label, y) for y, label in chart.y_ticks)
    assert (labels["-1"], labels["-2"], labels["-3"]) == (0, 70, 140)
    assert len(chart.y_ticks) <= 9
    assert chart.x_ticks[0] == (0, "0")
    assert dict((label, x) for x, label in chart.x_ticks)["0.2"] == 320
    assert loss_curves(Synthesis("distilled", losses={"bn": [1.0]}, minutes=[0])) == []


def test_of_many_classes_the_largest_are_shown():
    bars = class_bars([i % 7 for i in range(1000)])
    assert len(bars) == 60
    assert {bar.text for bar in bars} == {"6"}
    assert [bar.name for bar in class_bars([3, 0, 1])] == ["class 0", "class 1", "class 2"]
    assert [bar.share for bar in class_bars([3, 0, 1])] == [1, 0, 1 / 3]
    assert class_bars([]) == []
