"""What is broken, what is doubtful, and which option would help."""

from __future__ import annotations

from typing import Any

import pytest

from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.verify.outputs import Comparison
from onnxq.verify.verdict import find_verdict, names_method


def outputs(**more: Any) -> Comparison:
    fields = dict.fromkeys(("agreement", "kl", "estimated_drop", "estimated_drop_error"))
    return Comparison(**{"samples": 32, **fields, "sqnr_db": {}, **more})


@pytest.mark.parametrize(
    ("options", "decibels", "broken"),
    [
        ({}, 9.9, True),
        ({}, 10.0, False),
        ({}, 15.0, None),
        ({"weight_bits": 4}, 3.1, False),
        ({"weight_bits": 4}, 2.9, True),
        ({"activation_bits": 4}, 3.1, False),
        ({"activation_bits": None}, 9.9, True),
        ({"codebook": 16}, 3.1, False),
        ({"max_size": 0.2}, 3.1, False),
        ({"layers": (LayerOverride("a", weight_bits=3),)}, 3.1, False),
    ],
)
def test_the_worst_float_output_is_what_counts(options, decibels, broken):
    verdict = find_verdict(outputs(sqnr_db={"fine": 40.0, "bad": decibels}), Recipe(**options))
    if broken is None:
        assert verdict is None
        return
    assert verdict is not None and verdict.broken == broken
    assert f"'bad' has an SQNR of {decibels:.1f} dB on 32 held-out samples" in verdict.text


@pytest.mark.parametrize(("agreement", "broken"), [(0.49, True), (0.5, False)])
def test_a_classifier_is_judged_by_its_decisions(agreement, broken):
    verdict = find_verdict(outputs(agreement=agreement, kl=0.1, sqnr_db={"y": 2.0}), Recipe())
    assert verdict is not None and verdict.broken == broken
    assert ("49.0%" in verdict.text) == broken


def test_integer_outputs_are_decisions_and_float_ones_beside_them_count_too():
    assert find_verdict(outputs(agreement=1.0), Recipe()) is None
    verdict = find_verdict(outputs(agreement=1.0, sqnr_db={"y": 2.0}), Recipe())
    assert verdict is not None and verdict.broken


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"weight_bits": 4}, "--weight-bits"),
        ({"data_free": True}, "--data"),
        ({}, "--activation-bits none"),
        ({"activation_bits": None}, "--exclude"),
    ],
)
def test_the_option_that_would_help_is_named(options, remedy):
    verdict = find_verdict(outputs(sqnr_db={"y": -200.0}), Recipe(**options))
    assert verdict is not None and remedy in verdict.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, False),
        ({"weight_bits": 2, "samples": 7, "exclude": ("a",), "codebook": 16}, False),
        ({"learn": ("none",)}, True),
        ({"learn": ("thresholds",)}, True),
        ({"calibration": "max"}, True),
        ({"granularity": "per-tensor"}, True),
        ({"fallback": False}, True),
        ({"layers": (LayerOverride("a", calibration="max"),)}, True),
        ({"layers": (LayerOverride("a", weight_bits=4),)}, False),
    ],
)
def test_methods_that_were_named(options, named):
    assert names_method(Recipe(**options)) == named
