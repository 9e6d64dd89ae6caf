from __future__ import annotations

import numpy as np
import pytest

from onnxq.load.model import load_model
from onnxq.runtime.session import newest_opset, open_session
from tests.load.saved import operators, parse, refusal, save

X = np.array([[-2, -1, 1, 2], [3, -4, 5, -6]], np.float32)
GRAPH = "g (float[2,4] x) => (float[2,4] y) { y = my.F (x) }"
IMPORTS = '"" : 17, "my" : 1'
HEAD = '<opset_import: ["" : 17, "my" : 1], domain: "my">'


def _model(function: str, imports: str = IMPORTS):
    return parse(f"{GRAPH} {function}", imports)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (f"{HEAD} F (a) => (b) {{ c = Relu (a) b = Neg (c) }}", ["Relu", "Neg"]),
        (
            f"{HEAD} F (a) => (b) {{ c = my.G (a) b = my.G (c) }} "
            f"{HEAD} G (a) => (b) {{ b = Neg (a) }}",
            ["Neg", "Neg"],
        ),
        (
            f"{HEAD} F (a) => (b) {{ c = Constant <value_float = 2.0> () b = Mul (a, c) }}",
            ["Constant", "Mul"],
        ),
        (
            f"{HEAD} F (a) => (b) {{ s = ReduceSum <keepdims = 0> (a) "
            "z = Constant <value_float = 0.0> () k = Greater (s, z) "
            "b = If (k) <then_branch = t () => (float[2,4] p) { p = Relu (a) }, "
            "else_branch = e () => (float[2,4] q) { q = Neg (a) }> }",
            ["ReduceSum", "Constant", "Greater", "If"],
        ),
        (f"{HEAD} Unused (a) => (b) {{ b = other.Magic (a) }} {HEAD} F (a) => (b) "
         "{ b = Neg (a) }", ["Neg"]),
        (f"{HEAD} F (a) => (b) {{ b = my.Relu (a) }} {HEAD} Relu (a) => (b) {{ b = Neg (a) }}",
         ["Neg"]),
    ],
    ids=["plain", "nested", "constant", "sub_graph", "unused", "named_like_an_operator"],
)  # fmt: skip
def test_functions_take_the_place_of_their_calls(tmp_path, function, expected):
    # ONNX Runtime looks up the operators of functions that nothing calls.
    same = "Unused" not in function
    assert operators(tmp_path, _model(function), X, same) == expected


def test_a_function_in_onnx_own_domain(tmp_path):
    proto = parse(
        "g (float[2,4] x) => (float[2,4] y) { y = Magic (x) } "
        '<opset_import: ["" : 17], domain: ""> Magic (a) => (b) { b = Neg (a) }'
    )
    # ONNX Runtime looks for functions in other domains only.
    assert operators(tmp_path, proto, X, same=False) == ["Neg"]


def test_onnx_runtime_prefers_its_own_operator_to_a_function_of_that_name(tmp_path):
    proto = parse(
        "g (float[2,4] x) => (float[2,4] y) { y = Relu (x) } "
        '<opset_import: ["" : 17], domain: ""> Relu (a) => (b) { b = Neg (a) }'
    )
    assert operators(tmp_path, proto, X) == ["Relu"]


def test_an_attribute_of_the_call_reaches_the_body(tmp_path):
    proto = parse(
        "g (float[2,4] x) => (float[2,4] y) { y = my.F <slope = 0.5> (x) } "
        f"{HEAD} F <slope> (a) => (b) {{ b = LeakyRelu <alpha : float = @slope> (a) }}",
        IMPORTS,
    )
    assert operators(tmp_path, proto, X) == ["LeakyRelu"]


@pytest.mark.parametrize(
    ("opset", "body", "expected"),
    [
        (13, "c = Relu (a) b = Neg (c)", ["Relu", "Neg"]),
        (11, "b = Softmax <axis = 0> (a)", ["Softmax"]),
        (13, "s = Constant <value_ints = [2, 4]> () b = Reshape (a, s)", ["Constant", "Reshape"]),
    ],
)
def test_a_function_of_another_opset_is_read_as_onnx_runtime_reads_it(
    tmp_path, opset, body, expected
):
    """At the model's opset: Softmax of opset 11 means something else."""
    head = f'<opset_import: ["" : {opset}], domain: "my">'
    proto = parse(f"{GRAPH} {head} F (a) => (b) {{ {body} }}", '"" : 19, "my" : 1', ir_version=9)
    assert operators(tmp_path, proto, X) == expected


def test_a_circle_of_functions_is_refused(tmp_path):
    """It ends ONNX Runtime with a segmentation fault."""
    message = refusal(tmp_path, _model(f"{HEAD} F (a) => (b) {{ c = Relu (a) b = my.F (c) }}"))
    assert "The functions of" in message and "my::F -> my::F" in message


def test_functions_of_a_new_opset_come_down_with_the_model(tmp_path):
    head = '<opset_import: ["" : 23], domain: "my">'
    proto = parse(
        f"{GRAPH} {head} F (a) => (b) {{ c = Sigmoid (a) b = Mul (a, c) }}",
        '"" : 23, "my" : 1',
        ir_version=11,
    )
    model = load_model(save(tmp_path, proto))
    assert model.opset_imports[""] == min(23, newest_opset(quantized=True))
    found = open_session(model).run(None, {"x": X})[0]
    np.testing.assert_allclose(found, X / (1 + np.exp(-X)), rtol=1e-5)
