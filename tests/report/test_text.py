from __future__ import annotations

import pytest

from onnxq.report.text import (
    decibels_text,
    number_text,
    percent_text,
    points_text,
    size_text,
    time_text,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_118_812, "1.12 MB"), (3_000_000_000, "3 GB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_times() -> None:
    assert time_text(0.7641, 0.0214) == "0.764 ± 0.02 ms"
    assert time_text(0.0259, 0.0005) == "25.9 ± 0.5 µs"
    assert time_text(None, None) == "-"


def test_shares_points_and_numbers() -> None:
    assert percent_text(0.99414) == "99.41 %"
    assert points_text(0.1, 0.05) == "0.10 ± 0.05"
    assert points_text(-0.0) == "0.00"
    assert number_text(0.00123456) == "0.00123"
    assert percent_text(None) == points_text(None) == number_text(None) == "-"


def test_equal_outputs_have_no_decibels() -> None:
    assert decibels_text(200.0) == "equal"
    assert decibels_text(31.46) == "31.5 dB"
