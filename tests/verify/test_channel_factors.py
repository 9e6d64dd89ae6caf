from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.forms.equalize import equalize
from onnxq.graph.operators import constant
from onnxq.plan.layers import find_layers
from onnxq.verify.layer_noise import ChannelFactors
from onnxq.verify.opened import stored_array

MODEL = """
<ir_version: 8, opset_import: ["" : 13]>
net (
    float[N, 3, 8, 8] x, float[4, 3, 3, 3] w, float[4] b, float[4, 1, 3, 3] d, float[4] c,
    float[12, 5] g
) => (float[N, 5] y)
{
    [first] a1 = Conv (x, w, b)
    a2 = Relu (a1)
    [depthwise] a3 = Conv <group = 4> (a2, d, c)
    a4 = Relu (a3)
    p = AveragePool <kernel_shape = [2, 2], strides = [4, 1]> (a4)
    f = Flatten (p)
    [last] y = Gemm (f, g)
}
"""


def model(dead: bool = False) -> ir.Model:
    found = ir.from_onnx_text(MODEL)
    rng = np.random.default_rng(0)
    spread = np.array([0.01, 0.3, 4, 60]).reshape(4, 1, 1, 1)
    for value in list(found.graph.inputs)[1:]:
        assert value.shape is not None
        array = rng.normal(size=value.shape.numpy())
        array = array * (spread if array.ndim == 4 else 1)
        if dead and value.name == "w":
            array[1] = 0
        found.graph.inputs.remove(value)
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        found.graph.register_initializer(value)
    return found


@pytest.mark.parametrize("dead", [False, True])
def test_the_factors_of_an_equalization_are_found(dead: bool) -> None:
    teacher = model(dead)
    file = equalize(teacher, {"a2": np.ones(4), "a4": np.ones(4)}, "safe").model
    stored = {str(layer.node.name): layer for layer in find_layers(file.graph)[0]}
    factors = ChannelFactors(teacher)
    found = {}
    for layer in find_layers(teacher.graph)[0]:
        other = stored[str(layer.node.name)]
        weight, bias = constant(other.weight), constant(other.bias)
        assert weight is not None
        rescaled = factors.rescale(layer.node, weight, bias)
        assert rescaled.weight == pytest.approx(weight, rel=1e-4, abs=1e-7)
        found[str(layer.node.name)] = rescaled.factor
    assert found["last"] is None
    first = found["first"]
    assert first is not None
    assert np.abs(np.log(first)).max() > 1


def test_a_layer_that_was_not_rescaled_has_no_factor() -> None:
    teacher = model()
    layers = find_layers(teacher.graph)[0]
    factors = ChannelFactors(teacher)
    for layer in layers:
        weight = constant(layer.weight)
        assert weight is not None
        factor = factors.rescale(layer.node, weight, constant(layer.bias)).factor
        assert factor is None or factor == pytest.approx(np.ones(4))


STORED = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[1, 2] x) => (float[1, 2] y)
<int8[2, 2] codes = {1, 2, 3, 4}, float scale = {0.5}>
{
    real = Cast <to = 1> (codes)
    w = Mul (real, scale)
    y = MatMul (x, w)
}
"""


def test_stored_weights_are_what_the_graph_makes_of_constants() -> None:
    graph = ir.from_onnx_text(STORED).graph
    node = list(graph)[-1]
    assert stored_array(node.inputs[1]) == pytest.approx(np.array([[0.5, 1], [1.5, 2]]))
    assert stored_array(node.inputs[0]) is None
    assert stored_array(node.outputs[0]) is None
    assert stored_array(None) is None
