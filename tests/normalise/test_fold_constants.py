"""What follows from constants and shapes alone."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.clean import Simplify
from onnxq.normalise.fold_constants import FoldConstants, LiftConstants
from onnxq.normalise.fold_shapes import FoldShapes


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_constants_become_initializers(graph, applies):
    model = graph(
        "(float[N,2] x) => (float[N,2] y)", "c = Constant<value=float[2]{1,2}>() y = Add(x, c)"
    )
    changed = applies(LiftConstants(), model)
    assert _ops(changed) == ["Add"]
    assert list(changed.graph.initializers) == ["c"]


def test_a_constant_that_is_an_output_stays(graph, refuses):
    refuses(
        LiftConstants(), graph("(float[N] x) => (float[1] y)", "y = Constant<value=float[1]{1}>()")
    )


def test_constant_arithmetic_is_done_once(graph, applies):
    model = graph(
        "(float[N,4] x, int64[1] s) => (float[N,4] y)",
        "a = ConstantOfShape<value=float[1]{2}>(s) b = Sqrt(a) c, d = Split(b) "
        "e = Concat<axis=0>(d, c) y = Mul(x, e)",
        s=np.array([4]),
    )
    assert _ops(applies(FoldConstants(), model)) == ["Mul"]


def test_a_large_result_of_little_stays(graph, refuses):
    model = graph(
        "(float[N,4] x, float zero, float end, float one, int64[2] s) => (float y)",
        "r = Range(zero, end, one) a = Reshape(r, s) y = MatMul(x, a)",
        zero=np.float32(0),
        end=np.float32(4000),
        one=np.float32(1),
        s=np.array([4, 1000]),
    )
    refuses(FoldConstants(), model)


def test_a_large_result_that_repeats_is_stored_once(graph, applies):
    model = graph(
        "(float[N,4] x, int64[2] s) => (float y)",
        "a = ConstantOfShape<value=float[1]{2}>(s) y = MatMul(x, a)",
        s=np.array([4, 1000]),
    )
    assert _ops(applies(FoldConstants(), model)) == ["MatMul"]


SHARED = np.random.default_rng(0).normal(size=(32, 40)).astype(np.float32)


def test_a_copy_of_what_others_read_stays(graph, refuses):
    body = "e = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(e, t)"
    refuses(FoldConstants(), graph("(int64[N] i, float[32,40] w) => (float y)", body, w=SHARED))


def test_a_weight_of_one_layer_is_transposed_once(graph, applies):
    body = "t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)"
    model = graph("(float[N,40] x, float[32,40] w) => (float y)", body, w=SHARED)
    assert _ops(applies(FoldConstants(), model)) == ["MatMul"]


def test_the_parts_of_a_fused_weight_are_cut_once(graph, applies):
    body = "a, b = Split<axis=1>(w) p = MatMul(x, a) q = MatMul(x, b) y = Add(p, q)"
    model = graph("(float[N,32] x, float[32,40] w) => (float y)", body, w=SHARED)
    assert _ops(applies(FoldConstants(), model)) == ["MatMul", "MatMul", "Add"]


def test_onnxsim_does_not_copy_what_others_read(graph):
    body = "e = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(e, t)"
    model = graph("(int64[N] i, float[32,40] w) => (float y)", body, w=SHARED)
    assert "Transpose" in _ops(Simplify()(model).model)


@pytest.mark.parametrize(
    "body",
    ["r = RandomNormal<shape=[4]>() y = Mul(x, r)", "r = Relu(x) y = Mul(x, r)"],
    ids=["random", "not constant"],
)
def test_nothing_constant_stays(graph, refuses, body):
    refuses(FoldConstants(), graph("(float[N,4] x) => (float y)", body))


EXPORTED = (
    "s = Shape(x) b = Gather<axis=0>(s, zero) bu = Unsqueeze(b, axes) "
    "h = Gather<axis=0>(s, two) hu = Unsqueeze(h, axes) "
)
NAMES = "float[{}] x, int64 zero, int64 two, int64[1] axes, int64[1] rest, int64[1] one"


def _exported(graph, shape, body, output=""):
    return graph(
        f"({NAMES.format(shape)}) => (float{output} y)",
        EXPORTED + body,
        zero=np.array(0),
        two=np.array(2),
        axes=np.array([0]),
        rest=np.array([-1]),
        one=np.array([1]),
    )


def test_a_reshape_with_a_free_batch_gets_a_constant_shape(graph, applies):
    model = _exported(
        graph, "N,6,4", "t = Concat<axis=0>(bu, rest, hu) y = Reshape(x, t)", "[N,6,4]"
    )
    changed = applies(FoldShapes(), model)
    assert _ops(changed) == ["Reshape"]
    assert changed.graph[0].inputs[1].const_value.numpy().tolist() == [0, 6, 4]


def test_a_batch_that_moves_is_the_rest(graph, applies):
    model = _exported(
        graph, "N,6,4", "t = Concat<axis=0>(hu, one, bu, rest) y = Reshape(x, t)", "[4,1,N,6]"
    )
    changed = applies(FoldShapes(), model)
    assert changed.graph[0].inputs[1].const_value.numpy().tolist() == [4, 1, -1, 6]


def test_arithmetic_on_sizes_is_folded(graph, applies):
    model = _exported(
        graph,
        "N,6,4",
        "d = Div(hu, one) m = Mul(d, one) a = Add(m, rest) e = Sub(a, one) "
        "y = Slice(x, axes, e, one)",
    )
    assert _ops(applies(FoldShapes(), model)) == ["Slice"]


def test_two_free_dimensions_that_move_stay(graph, refuses):
    model = _exported(graph, "N,6,H", "t = Concat<axis=0>(hu, bu, rest) y = Reshape(x, t)")
    refuses(FoldShapes(), model)


def test_onnxsim_keeps_batch_norm(graph):
    model = graph(
        "(float[N,4,5,5] x, float[4,4,1,1] w, float[4] g) => (float[N,4,5,5] y)",
        "i = Identity(x) c = Conv(i, w) y = BatchNormalization(c, g, g, g, g)",
        w=np.ones((4, 4, 1, 1)),
        g=np.ones(4),
    )
    model.metadata_props["key"] = "value"
    result = Simplify()(model)
    assert result.modified
    assert "BatchNormalization" in _ops(result.model)
    assert dict(result.model.metadata_props) == {"key": "value"}


def test_a_failing_onnxsim_is_a_note(graph, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such luck.\nmore")

    monkeypatch.setattr("onnxsim.simplify", fail)
    model = graph("(float[N] x) => (float[N] y)", "y = Relu(x)")
    result = Simplify()(model)
    assert result.model is model and not result.modified
    assert "(no such luck)" in result.notes[0]
