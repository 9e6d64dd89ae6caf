from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import DataError, ModelError
from onnxq.verify.evaluate import Ranks, paired_metrics


def ranks(labels: list[int], scores: list[list[float]], batch: int = 2) -> Ranks:
    found = Ranks(np.array(labels))
    for start in range(0, len(scores), batch):
        found.add({"logits": np.array(scores[start : start + batch], np.float32)})
    return found


def test_top1_and_top5_in_percent() -> None:
    scores = [[float(i == row) + i / 100 for i in range(7)] for row in range(4)]
    found = ranks([0, 1, 3, 6], scores, batch=3).metrics()
    # Row 2 has class 3 in its fifth place, row 3 has class 6 in its second.
    assert found["top1"] == 50
    assert found["top5"] == 100
    assert found["error"] == pytest.approx(25)


def test_of_equal_scores_the_first_class_wins() -> None:
    assert ranks([0, 1], [[1, 1], [1, 1]]).right.tolist() == [True, False]


def test_no_top5_of_five_classes_or_fewer() -> None:
    assert ranks([0], [[1, 0, 0, 0, 0]]).metrics()["top5"] is None


def test_paired_drop_is_that_of_single_samples() -> None:
    good, bad = [1.0, 0.0], [0.0, 1.0]
    reference = ranks([0] * 4, [good, good, good, bad])
    candidate = ranks([0] * 4, [good, bad, good, good])
    found = paired_metrics(reference, candidate)
    # d = 0, 1, 0, -1: no drop, but an error of sqrt(0.5 / 4).
    assert found["drop"] == 0
    assert found["drop_error"] == pytest.approx(100 * 0.125**0.5)
    assert found["reference_top1"] == found["top1"] == 75


def test_a_label_that_is_no_class_is_a_sentence() -> None:
    with pytest.raises(DataError, match="'7' is not a class"):
        ranks([7], [[1.0, 2.0]])


def test_a_model_without_classes_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="--reference"):
        Ranks(np.array([0])).add({"boxes": np.zeros((1, 4, 5), np.float32)})


def test_scores_with_empty_space_are_rows() -> None:
    found = Ranks(np.array([1]))
    found.add({"logits": np.array([0.0, 1.0], np.float32).reshape(1, 2, 1, 1)})
    assert found.right.tolist() == [True]
