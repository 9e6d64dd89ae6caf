"""Whole or clipped ranges, as held-out samples say."""

from dataclasses import replace

import numpy as np
import pytest
from small_graphs import build, quantization_on, targets_of

from onnxq.forms import ranges as ranges_module
from onnxq.forms.ranges import choose_ranges, swish_floors
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import Recipe

PEAKS = """net (float[N, 4, 16] x) => (float[N, 4, 16] y) {
    a = MatMul (x, w) s = Sigmoid (a) c = Mul (a, s)
    b = MatMul (c, v) y = Pow (b, four)
}"""


@pytest.fixture
def variant(tmp_path):
    """Ranges that cut the peaks off which the outputs consist of."""
    rng = np.random.default_rng(0)
    w = {"w": np.eye(16, dtype=np.float32), "v": np.eye(16, dtype=np.float32)}
    model = build(PEAKS, {**w, "four": np.float32(4)})
    x = rng.laplace(0, 0.2, (64, 4, 16)) + 6 * (rng.random((64, 4, 16)) < 0.01)
    x -= 9 * (rng.random((64, 4, 16)) < 0.1)
    targets = targets_of(tmp_path, model, x.astype(np.float32), 16)
    found = quantization_on(targets)("plain", model, Recipe(bias_correction=False))
    cut = {n: Range(max(r.lowest, -3), 5) for n, r in found.qparams.ranges.items() if n in "abc"}
    qparams = found.qparams.with_ranges(cut)
    return replace(found, qparams=qparams, score=found.score_of(qparams), recipe=Recipe())


def test_peaks_that_count_are_not_cut(variant):
    chosen = choose_ranges(variant)
    assert chosen.tuned
    assert chosen.score < 0.9 * variant.score
    assert chosen.score == pytest.approx(chosen.score_of(chosen.qparams))
    whole, found = variant.full_ranges()["a"], chosen.qparams.ranges["a"]
    assert found.lowest == ranges_module.SWISH_FLOORS["Sigmoid"] > whole.lowest
    assert found.lowest + found.width == pytest.approx(whole.lowest + whole.width, rel=1e-6)


def test_a_named_method_is_kept(variant):
    named = replace(variant, recipe=Recipe(calibration="percentile"))
    assert choose_ranges(named) is named


def test_a_classifier_keeps_its_ranges(variant):
    decides = replace(variant, objective=replace(variant.objective, decision="y"))
    assert choose_ranges(decides) is decides


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("s = Sigmoid (a) y = Mul (a, s)", {"a": -5.0}),
        ("s = HardSigmoid (a) y = Mul (s, a)", {"a": -3.0}),
        ("s = Sigmoid (a) y = Add (a, s)", {}),
        ("s = Sigmoid (a) b = Mul (a, s) y = Add (a, b)", {}),
        ("s = Sigmoid (a) b = Mul (a, s) y = Add (s, b)", {}),
        ("y = Sigmoid (a)", {}),
    ],
)
def test_floors_are_of_swishes_alone(text, floor):
    model = build(
        f"net (float[N, 4] x) => (float[N, 3] y) {{ a = Gemm (x, w) {text} }}", {"w": (4, 3)}
    )
    assert swish_floors(model, ["a"]) == floor
