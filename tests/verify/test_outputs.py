from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.samples import open_samples
from onnxq.numerics.distances import MOST_DB
from onnxq.runtime.dataset import Samples
from onnxq.runtime.session import SessionPool
from onnxq.verify.outputs import Comparer, compare_outputs, probability_outputs

SCALED = """
<ir_version: 8, opset_import: ["" : 13]>
scaled (float[N, 3] x) => (float[N, 3] y)
<float[3] factor = {%s}>
{ y = Mul (x, factor) }
"""

SOFTMAX = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 3] x) => (float[N, 3] probabilities, float[N, 3] logits)
{
  logits = Neg (x)
  shares = Softmax <axis = 1> (logits)
  probabilities = Identity (shares)
}
"""


@pytest.fixture
def samples(tmp_path) -> Samples:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return open_samples(tmp_path / "x.npz", [InputSpec("x", np.dtype(np.float32), (None, 3))], None)


def pool(factors: str) -> SessionPool:
    return SessionPool(ir.from_onnx_text(SCALED % factors))


def test_equal_models_agree_entirely(samples: Samples) -> None:
    found = compare_outputs(pool("1, 1, 1"), pool("1, 1, 1"), samples)
    assert found.samples == 50
    assert found.agreement == 1
    assert found.kl == 0
    assert found.estimated_drop == found.estimated_drop_error == 0
    assert found.sqnr_db == {"y": MOST_DB}


def test_sqnr_of_a_gain_of_a_tenth_is_20_db(samples: Samples) -> None:
    found = compare_outputs(pool("1, 1, 1"), pool("1.1, 1.1, 1.1"), samples)
    assert found.sqnr_db["y"] == pytest.approx(20, abs=1e-3)
    assert found.agreement == 1


def test_figures_are_those_of_the_whole_arrays(samples: Samples) -> None:
    x = np.concatenate([feeds["x"] for feeds in samples.batches(8)]).astype(np.float64)
    other = x * np.float32([1, 1.5, 0.5])
    p, q = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (x, other))
    rows, c_t, c_s = np.arange(50), x.argmax(1), other.argmax(1)
    drop = p[rows, c_t] - p[rows, c_s]

    # 16 is not a divisor of 50: the last batch is short.
    found = compare_outputs(pool("1, 1, 1"), pool("1, 1.5, 0.5"), samples, batch_size=16)
    assert found.agreement == pytest.approx((c_t == c_s).mean())
    assert found.agreement < 1
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    assert found.estimated_drop == pytest.approx(100 * drop.mean(), rel=1e-5)
    assert found.estimated_drop_error == pytest.approx(100 * drop.std() / 50**0.5, rel=1e-5)


def test_progress_counts_samples(samples: Samples) -> None:
    done: list[int] = []
    compare_outputs(pool("1, 1, 1"), pool("1, 1, 1"), samples, batch_size=16, on_batch=done.append)
    assert done == [16, 32, 48, 50]


def test_softmax_outputs_are_found_in_the_graph() -> None:
    assert probability_outputs(ir.from_onnx_text(SOFTMAX)) == {"probabilities"}


def test_probabilities_are_not_put_through_softmax_again() -> None:
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    q = np.array([[0.5, 0.25, 0.25]], np.float32)
    expected = float((p * np.log(p / q)).sum())
    for probabilities in (None, {"y"}):
        comparer = Comparer(["y"], probabilities)
        comparer.add({"y": p}, {"y": q})
        assert comparer.comparison(1).kl == pytest.approx(expected, rel=1e-5)


def test_class_indices_agree_where_there_are_no_scores() -> None:
    comparer = Comparer(["label"])
    comparer.add({"label": np.array([1, 2, 3])}, {"label": np.array([1, 2, 4])})
    found = comparer.comparison(3)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.kl is None
    assert found.sqnr_db == {}


def test_outputs_of_other_shapes_are_named() -> None:
    comparer = Comparer(["boxes"])
    comparer.add({"boxes": np.zeros((3, 4), np.float32)}, {"boxes": np.zeros((2, 4), np.float32)})
    found = comparer.comparison(1)
    assert found.incomparable == ["boxes"]
    assert found.sqnr_db == {}
    assert found.agreement is None


def test_values_that_are_not_finite_count_against_the_candidate_only() -> None:
    y = np.array([[[1.0, -np.inf, 2.0]]], np.float32)
    comparer = Comparer(["y"])
    comparer.add({"y": y}, {"y": np.array([[[1.0, 5.0, 2.0]]], np.float32)})
    assert comparer.comparison(1).sqnr_db == {"y": MOST_DB}
    comparer.add({"y": y}, {"y": np.array([[[np.nan, 5.0, 2.0]]], np.float32)})
    assert comparer.comparison(2).sqnr_db == {"y": -MOST_DB}


def test_an_output_of_boxes_and_scores_is_as_good_as_the_worse_of_them() -> None:
    random = np.random.default_rng(0)
    boxes, scores = random.uniform(5, 300, (8, 4, 30)), random.beta(0.1, 1, (8, 3, 30))
    y = np.concatenate([boxes, scores], 1).astype(np.float32)
    gains = np.array([1.001] * 4 + [1.1] * 3, np.float32)[:, None]
    comparer = Comparer(["y"])
    for batch in (y[:5], y[5:]):
        comparer.add({"y": batch}, {"y": batch * gains})
    assert comparer.comparison(8).sqnr_db["y"] == pytest.approx(20, abs=1e-3)
