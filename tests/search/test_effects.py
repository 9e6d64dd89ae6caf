"""What outputs say about a setting, against the formulas written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.search.effects import EffectMeter


def logits(seed: int, rows: int = 24, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, classes)).astype(np.float32)


@given(seed=st.integers(0, 1000), cut=st.integers(1, 23))
@settings(max_examples=30, deadline=None)
def test_a_classifier(seed, cut):
    teacher, student = logits(seed), logits(seed) + 0.5 * logits(seed + 1)
    meter = EffectMeter(["y"], {"y": teacher}, len(teacher))
    batches = [slice(0, cut), slice(cut, None)]
    sums = sum(meter.sums({"y": teacher[b]}, {"y": student[b]}) for b in batches)
    effect = meter.effect(sums, len(teacher), 7)
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (teacher, student))
    drops = p.max(axis=1) - p[np.arange(len(p)), q.argmax(axis=1)]
    assert meter.measure == "kl" and effect.size == 7
    assert effect.error == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)
    assert effect.drop == pytest.approx(100 * drops.mean(), abs=1e-4)
    assert effect.drop_error == pytest.approx(100 * drops.std() / np.sqrt(len(p)), abs=1e-4)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_other_outputs(seed):
    teacher = {"a": logits(seed), "b": 100 * logits(seed + 1)}
    student = {"a": logits(seed + 2)}
    meter = EffectMeter(["a", "b"], teacher, len(teacher["a"]))
    effect = meter.effect(meter.sums(teacher, student), len(teacher["a"]), 1)
    ratio = np.square(student["a"] - teacher["a"]).sum() / np.square(teacher["a"]).sum()
    assert meter.measure == "error"
    assert (effect.drop, effect.drop_error) == (None, None)
    assert effect.error == pytest.approx(ratio / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "measure"),
    [((6, 3), "kl"), ((6, 3, 1, 1), "kl"), ((6, 1), "error"), ((6, 3, 2), "error"), ((6,), "error"),
     ((12, 3), "error")],
)  # fmt: skip
def test_what_is_a_classifier(shape, measure):
    assert EffectMeter(["y"], {"y": np.zeros(shape, np.float32)}, 6).measure == measure


def test_probabilities_are_taken_as_they_are():
    p = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    q = np.array([[0.8, 0.2], [0.3, 0.7]], np.float32)
    meter = EffectMeter(["y"], {"y": p}, 2)
    effect = meter.effect(meter.sums({"y": p}, {"y": q}), 2, 1)
    assert effect.error == pytest.approx((p * np.log(p / q)).sum() / 2, rel=1e-4)
