"""Metrics that fit a task, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph.meanings import Meaning
from onnxq.verify.outputs import Comparer
from onnxq.verify.task import find_task


def _metrics(meaning: Meaning, *pairs: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    comparer = Comparer(["y"], None, {"y": meaning})
    for y, y_hat in pairs:
        comparer.add({"y": np.float32(y)}, {"y": np.float32(y_hat)})
    found = comparer.comparison(1)
    assert (found.agreement, found.kl, found.estimated_drop) == (None, None, None)
    return found.task_metrics


def test_cosine_of_embeddings():
    y, other = np.array([[1, 0], [3, 4], [0, 0]]), np.array([[0, 1], [6, 8], [1, 1]])
    found = _metrics(Meaning("embeddings"), (y, other), (y[:1], y[:1]))
    assert found == {"cosine of y": pytest.approx((0 + 1 + 1) / 3)}


def test_recall_precision_and_boxes():
    y = np.array([[[10, 20, 30], [0.9, 0.05, 0.2]]])  # one coordinate and one score of three boxes
    other = np.array([[[11, 90, 34], [0.8, 0.3, 0.05]]])
    found = _metrics(Meaning("scores", 1, (1, 2)), (y, other))
    assert found == {
        "recall of scores over 0.1": 0.5,
        "precision of scores over 0.1": 0.5,
        "mean error of the boxes found": pytest.approx((1 + 4) / 2),
    }


@pytest.mark.parametrize("axis", [0, 1])
def test_strings_kept(axis):
    symbols = np.array([[0, 1, 1, 0, 2, 0, 0, 0], [0, 3, 0, 3, 0, 0, 0, 0]])
    others = np.array([[1, 0, 0, 2, 2, 0, 0, 0], [0, 3, 3, 3, 0, 0, 0, 0]])
    y, other = (np.moveaxis(np.eye(5)[each], 0, axis) for each in (symbols, others))
    assert _metrics(Meaning("sequences", axis), (y, other)) == {"strings kept": 0.5}


def test_masks_and_maps():
    y = np.array([[[[0.9, 0.8], [0.1, 0.2]]]])
    other = np.array([[[[0.9, 0.4], [0.1, 0.7]]]])
    assert _metrics(Meaning("mask"), (y, other)) == {"IoU of y": pytest.approx(1 / 3)}
    several = np.concatenate([y, 1 - y], axis=1)
    assert _metrics(Meaning("mask"), (several, several)) == {"IoU of y": 1.0}
    image = np.arange(4.0).reshape(1, 1, 2, 2)
    found = _metrics(Meaning("image"), (image, image + 0.3))
    assert found == {"PSNR of y, dB": pytest.approx(20, abs=1e-3)}


def test_what_means_nothing_has_no_metrics_of_its_own():
    values = np.random.default_rng(0).normal(size=(4, 3))
    assert _metrics(Meaning("other"), (values, values + 1)) == {}


def test_the_task_is_that_of_the_output_which_counts_first():
    kinds = {"a": Meaning("embeddings"), "b": Meaning("classes"), "c": Meaning("other")}
    assert find_task(kinds) == "classes"
    assert find_task({**kinds, "d": Meaning("scores")}) == "detection"
    assert find_task({}) == "other"
