"""Whole or clipped ranges, as held-out samples say."""

from dataclasses import replace

import numpy as np
import pytest
from small_graphs import build, quantization_on, targets_of

from onnxq.forms import ranges as ranges_module
from onnxq.forms.ranges import HEADROOM, choose_ranges, score_heads, swish_floors
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


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("y = Sigmoid (a)", ["a"]),
        ("b = Concat <axis = 1> (a, a) s = Sigmoid (b) y = Concat <axis = 1> (s, x)", ["a"]),
        ("s = Sigmoid (a) y = Mul (a, s)", []),
        ("y = Tanh (a)", []),
    ],
)
def test_logits_whose_sigmoid_is_an_output(text, heads):
    model = build(
        f"net (float[N, 4] x) => (float[N, m] y) {{ a = Gemm (x, w) {text} }}", {"w": (4, 3)}
    )
    assert score_heads(model, ["a"]) == heads


def test_a_score_above_those_seen_can_appear(tmp_path):
    """The logits end in a layer, so that they are integers; the samples' are all below 0."""
    text = """net (float[N, 4, 8] x) => (float[N, 4, 8] y, float[N, 4, 8] z) {
        b = MatMul (x, w) a = Add (b, low) y = Sigmoid (a) z = MatMul (a, w)
    }"""
    model = build(text, {"w": np.eye(8, dtype=np.float32), "low": np.float32([-3])})
    x = np.random.default_rng(0).uniform(-2, 2, (40, 4, 8)).astype(np.float32)
    variant = quantization_on(targets_of(tmp_path, model, x, 16))("plain", model, Recipe())
    before, after = (each.qparams.ranges["a"] for each in (variant, choose_ranges(variant)))
    assert before.lowest + before.width < 0.1
    assert after.lowest + after.width == pytest.approx(HEADROOM, abs=1e-5)
