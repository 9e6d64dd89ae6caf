from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.verify.benchmark import measure_latency

PRODUCT = """
<ir_version: 8, opset_import: ["" : 13]>
product (float[N, N] x) => (float[N, N] y)
{ y = MatMul (x, x) }
"""


def test_models_are_timed_in_turn_each_on_its_own_feed() -> None:
    model = ir.to_proto(ir.from_onnx_text(PRODUCT)).SerializeToString()
    small, large = ({"x": np.ones((n, n), np.float32)} for n in (4, 400))
    first, second = measure_latency([model, model], [small, large], rounds=7)
    assert first.rounds == second.rounds == 7
    assert 0 < first.median_ms < second.median_ms
    assert first.spread_ms >= 0


def test_the_time_limit_leaves_five_rounds() -> None:
    model = ir.from_onnx_text(PRODUCT)
    feeds = {"x": np.ones((4, 4), np.float32)}
    (found,) = measure_latency([model], feeds, rounds=100, most_seconds=0.0)
    assert found.rounds == 5


def test_one_feed_per_model() -> None:
    model = ir.from_onnx_text(PRODUCT)
    with pytest.raises(ValueError, match="zip"):
        measure_latency([model, model], [{"x": np.ones((4, 4), np.float32)}])
