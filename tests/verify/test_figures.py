from __future__ import annotations

import json

import pytest

from onnxq.errors import ModelError
from onnxq.verify.metrics import OUTSIDE_FIELDS, Metrics

FIGURES = Metrics(
    size_before=1000,
    size_after=300,
    integer_layers=2,
    agreement=0.99,
    latency_before_ms=2.0,
    latency_before_spread_ms=0.1,
    latency_after_ms=1.0,
    latency_after_spread_ms=0.1,
    sqnr_db={"logits": 30.0},
    weight_only={"deconv": "ConvTranspose has no integer kernel"},
    notes=["a note"],
)


def test_json_round_trip() -> None:
    assert Metrics.from_json(FIGURES.to_json()) == FIGURES


def test_metadata_has_no_figure_of_the_clock() -> None:
    fields = json.loads(FIGURES.to_metadata())
    assert not set(fields) & set(OUTSIDE_FIELDS)
    assert Metrics.from_json(FIGURES.to_metadata()).agreement == 0.99


def test_figures_of_a_later_version_are_read() -> None:
    fields = {**FIGURES.to_fields(), "invented_later": 1}
    assert Metrics.from_fields(fields) == FIGURES


def test_ratios() -> None:
    assert FIGURES.ratio == 0.3
    assert FIGURES.latency_ratio == 0.5
    assert Metrics(1000, 300).latency_ratio is None


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "{}",
        "[1]",
        '"x"',
        "[" * 100_000,
        '{"size_before": "1", "size_after": 2}',
        '{"size_before": 1, "size_after": 2, "weight_only": 3}',
        '{"size_before": 1, "size_after": 2, "kernels": {"a": null}}',
    ],
)
def test_broken_metadata_is_a_sentence(text: str) -> None:
    with pytest.raises(ModelError, match=r"onnxq\.figures"):
        Metrics.from_json(text)
