"""Outputs of streaming models that are copies of inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Feeds, build, quantize, run

from onnxq.normalise.own_outputs import OwnOutputs
from onnxq.normalise.pipeline import normalise

CACHE = "j = Concat <axis = 2> (cache, x) c = Conv (j, w) r = Relu (c) y = Conv (r, w2)"
TURNED = "t = Transpose <perm = [0, 2, 1]> (cache) j = Concat <axis = 2> (x, x) c = Conv (t, w)"
BODIES = {
    "shifted": f"{CACHE} out = Slice (j, start, end, axes)",
    "joined": f"{CACHE} out = Transpose <perm = [0, 1, 2]> (j)",
    "moved": f"{TURNED} r = Relu (c) y = Conv (r, w2) out = Slice (t, start, end, axes)",
    "read": f"{TURNED} r = Relu (c) y = Conv (r, w2) out = Identity (t)",
}


def _stream(body: str, batch: str = "1") -> ir.Model:
    inputs = f"float[{batch}, 6, 6] cache, float[{batch}, 6, 6] x"
    given = {"w": (6, 6, 3), "w2": (6, 6, 1)}
    bounds = {"start": np.array([-3]), "end": np.array([99]), "axes": np.array([2])}
    more = {name: array for name, array in bounds.items() if name in body}
    text = f"net ({inputs}) => (float[{batch}, 6, M] y, float[{batch}, K, L] out) {{ {body} }}"
    return build(text, given | more, opset=17)


def _feeds(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(1, 6, 6)).astype(np.float32) for name in ("cache", "x")}


@pytest.mark.parametrize("name", BODIES)
def test_outputs_that_copy_inputs_stay_exact(name):
    original = _stream(BODIES[name])
    found = normalise(original, [_feeds(0)])
    made = quantize(found.model, Feeds([_feeds(seed) for seed in range(8)]))
    assert made.plan.integer_layers()
    onnx.checker.check_model(ir.to_proto(made.exported), full_check=True)
    fresh = _feeds(9)
    for optimise in (False, True):
        given = run(made.exported, fresh, optimise=optimise)
        np.testing.assert_array_equal(given["out"], run(original, fresh)["out"])
    assert not OwnOutputs()(found.model).modified


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (cache, w) y = Conv (c, w2) out = Relu (x)",
        "c = Conv (cache, w) y = Conv (c, w2) out = Slice (c, start, end, axes)",
        "c = Conv (cache, w) y = Conv (c, w2) out = Slice (x, start, end, axes)",
    ],
)
def test_other_outputs_are_left_alone(body):
    model = _stream(body)
    before = [node.op_type for node in model.graph]
    assert not OwnOutputs()(model).modified
    assert [node.op_type for node in model.graph] == before
