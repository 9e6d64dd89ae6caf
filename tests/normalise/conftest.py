"""Small graphs as ONNX text, and the properties that every pass must have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.load.interface import input_specs, random_feeds
from onnxq.load.read import run_model
from onnxq.normalise.clean import NameEverything, SweepDead
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.normalise.passes import GraphPass

GraphMaker = Callable[..., ir.Model]
PassCheck = Callable[..., ir.Model]


def _graph(signature: str, body: str, opset: int = 13, **constants: np.ndarray) -> ir.Model:
    """A model; `constants` are those of its inputs that become initializers."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3]>'
    model = ir.from_onnx_text(f"{header} g {signature} {{ {body} }}")
    for value in list(model.graph.inputs):
        if value.name in constants:
            array = np.asarray(constants[value.name])
            if array.dtype == np.float64:
                array = array.astype(np.float32)
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
            model.graph.register_initializer(value)
    for value in model.graph.outputs:
        if value.shape is not None and not len(value.shape):
            value.shape = None  # written as "float y": to be inferred
    NameEverything()(model)
    InferShapes()(model)
    return model


@pytest.fixture
def graph() -> GraphMaker:
    return _graph


@pytest.fixture
def applies() -> PassCheck:
    """Runs a pass that must apply, and holds it to what every pass must keep."""

    def check(graph_pass: GraphPass, model: ir.Model, *, batch: int = 2) -> ir.Model:
        original = model.clone()
        result = graph_pass(model)
        assert result.modified
        changed = result.model
        SweepDead()(changed)
        assert not graph_pass(changed).modified, "a second run must be a no-op"
        onnx.checker.check_model(ir.to_proto(changed), full_check=True)
        assert_equal_outputs(original, changed, batch)
        return changed

    return check


@pytest.fixture
def refuses() -> Callable[[GraphPass, ir.Model], None]:
    """Runs a pass that must leave the model alone."""

    def check(graph_pass: GraphPass, model: ir.Model) -> None:
        before = ir.to_proto(model).SerializeToString()
        assert not graph_pass(model).modified
        assert ir.to_proto(model).SerializeToString() == before

    return check


def assert_equal_outputs(original: ir.Model, changed: ir.Model, batch: int = 2) -> None:
    feeds = [random_feeds(input_specs(original), batch)]
    assert [v.name for v in changed.graph.inputs] == [v.name for v in original.graph.inputs]
    assert [v.name for v in changed.graph.outputs] == [v.name for v in original.graph.outputs]
    expected = run_model(original, feeds, optimise=False)[0]
    found = run_model(changed, feeds, optimise=False)[0]
    for a, b in zip(expected, found, strict=True):
        # Folded in float64 and rounded once to float32: a few units in the last place.
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))
