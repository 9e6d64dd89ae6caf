"""The passes that write one kind of node as another."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.clean import RemoveIdentity
from onnxq.normalise.plain_nodes import ChainSum, ClipToRelu, ExpandWhere, SplitToSlices
from onnxq.normalise.spatial import FullPads, MeanToPool


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


FLOAT_MAX = np.finfo(np.float32).max


# --- Clip ---


@pytest.mark.parametrize("high", [None, np.float32(np.inf), FLOAT_MAX])
def test_clip_from_zero_is_relu(graph, applies, high):
    constants = {"low": np.float32(0)} | ({} if high is None else {"high": high})
    model = graph(
        f"(float[N,4] x, float low{'' if high is None else ', float high'}) => (float[N,4] y)",
        f"y = Clip(x, low{'' if high is None else ', high'})",
        **constants,
    )
    assert _ops(applies(ClipToRelu(), model)) == ["Relu"]


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, np.inf)], ids=["relu6", "not from zero"])
def test_clip_with_limits_stays(graph, refuses, low, high):
    model = graph(
        "(float[N,4] x, float low, float high) => (float[N,4] y)",
        "y = Clip(x, low, high)",
        low=np.float32(low),
        high=np.float32(high),
    )
    refuses(ClipToRelu(), model)


def test_clip_with_computed_limits_stays(graph, refuses):
    model = graph("(float[N,4] x, float low) => (float[N,4] y)", "y = Clip(x, low)")
    refuses(ClipToRelu(), model)
    model = graph(
        "(float[N,4] x, float low, float high) => (float[N,4] y)",
        "y = Clip(x, low, high)",
        low=np.float32(0),
    )
    refuses(ClipToRelu(), model)


# --- Sum ---


@pytest.mark.parametrize(("inputs", "adds"), [("a, b", 1), ("a, b, c", 2), ("a, b, a, c", 3)])
def test_sum_is_a_chain_of_add(graph, applies, inputs, adds):
    model = graph(
        "(float[N,4] a, float[N,4] b, float[1,4] c) => (float[N,4] y)", f"y = Sum({inputs})"
    )
    assert _ops(applies(ChainSum(), model)) == ["Add"] * adds


def test_sum_of_one_is_left_to_another_pass(graph, refuses):
    refuses(ChainSum(), graph("(float[N,4] a) => (float[N,4] y)", "y = Sum(a)"))


# --- ReduceMean ---


@pytest.mark.parametrize("axes", ["2,3", "-1,-2"])
@pytest.mark.parametrize(("keep", "ops"), [(1, ["GlobalAveragePool"]), (0, None)])
def test_mean_over_height_and_width_is_a_pool(graph, applies, axes, keep, ops):
    model = graph(
        "(float[N,4,5,6] x) => (float y)", f"y = ReduceMean<axes=[{axes}], keepdims={keep}>(x)"
    )
    changed = applies(MeanToPool(), model)
    assert _ops(changed) == (ops or ["GlobalAveragePool", "Flatten"])


def test_mean_with_axes_as_input(graph, applies):
    model = graph(
        "(float[N,4,5,6] x, int64[2] axes) => (float[N,4] y)",
        "y = ReduceMean<keepdims=0>(x, axes)",
        opset=18,
        axes=np.array([2, 3]),
    )
    assert _ops(applies(MeanToPool(), model)) == ["GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize(
    ("shape", "axes"), [("N,4,5,6", "1,2"), ("N,4,5", "1,2"), ("N,4,5,6", "3")]
)
def test_other_means_stay(graph, refuses, shape, axes):
    refuses(
        MeanToPool(), graph(f"(float[{shape}] x) => (float y)", f"y = ReduceMean<axes=[{axes}]>(x)")
    )


# --- Split ---


@pytest.mark.parametrize("sizes", [None, [1, 2, 3]])
def test_split_with_an_unused_output_is_slices(graph, applies, sizes):
    model = graph(
        f"(float[N,6] x{'' if sizes is None else ', int64[3] s'}) => (float y, float z)",
        f"a, b, z = Split<axis=-1>(x{'' if sizes is None else ', s'}) y = Relu(a)",
        **({} if sizes is None else {"s": np.array(sizes)}),
    )
    assert _ops(applies(SplitToSlices(), model)) == ["Slice", "Slice", "Relu"]


def test_split_into_unequal_parts_of_opset_18(graph, applies):
    model = graph(
        "(float[N,7] x) => (float y)", "a, b, y = Split<axis=1, num_outputs=3>(x)", opset=18
    )
    assert _ops(applies(SplitToSlices(), model)) == ["Slice"]


def test_split_stays_where_all_is_used_or_sizes_are_unknown(graph, refuses):
    refuses(
        SplitToSlices(), graph("(float[N,4] x) => (float y, float z)", "y, z = Split<axis=1>(x)")
    )
    refuses(SplitToSlices(), graph("(float[N,M] x) => (float y)", "y, z = Split<axis=1>(x)"))


# --- Where ---


@pytest.mark.parametrize("inputs", ["full, small", "small, full", "small, small"])
def test_where_broadcasts_by_expand(graph, applies, inputs):
    model = graph(
        "(bool[N,3,4] c, float[N,3,4] full, float[N,1,4] small) => (float[N,3,4] y)",
        f"y = Where(c, {inputs})",
    )
    changed = applies(ExpandWhere(), model)
    assert _ops(changed).count("Expand") == inputs.count("small")


def test_where_stays_with_constants_equal_shapes_or_no_full_input(graph, refuses):
    model = graph(
        "(bool[N,4] c, float[N,4] x, float k) => (float[N,4] y)",
        "y = Where(c, x, k)",
        k=np.float32(3),
    )
    refuses(ExpandWhere(), model)
    refuses(
        ExpandWhere(),
        graph("(bool[N,4] c, float[N,4] x, float[N,4] z) => (float[N,4] y)", "y = Where(c, x, z)"),
    )
    refuses(
        ExpandWhere(),
        graph("(bool[1,4] c, float[3,1] x, float[1,1] z) => (float[3,4] y)", "y = Where(c, x, z)"),
    )


# --- Identity and the like ---


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x) b = Identity(a) y = Relu(b)",
        "a = Relu(x) y = Identity(a)",
        "a = Identity(x) y = Relu(a)",
        "a = Relu(x) y = Dropout(a)",
        "a = Relu(x) b, mask = Dropout(a) y = Relu(b)",
        "a = Relu(x) b = Cast<to=1>(a) y = Relu(b)",
        "a = Relu(x) b = Concat<axis=1>(a) y = Relu(b)",
        "a = Relu(x) b = Sum(a) y = Max(b)",
        "a = Relu(x) b = Transpose<perm=[0,1]>(a) y = Relu(b)",
    ],
)
def test_nodes_that_change_nothing_go(graph, applies, body):
    model = graph("(float[N,4] x) => (float[N,4] y)", body)
    assert set(_ops(applies(RemoveIdentity(), model))) == {"Relu"}


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity(x)",
        "a = Relu(x) b = Transpose(a) y = Transpose<perm=[1,0]>(b)",
        "a = Cast<to=7>(x) y = Cast<to=1>(a)",
        "a, m = Dropout(x) b = Cast<to=1>(m) y = Add(a, b)",
    ],
)
def test_nodes_that_change_something_stay(graph, refuses, body):
    refuses(RemoveIdentity(), graph("(float[N,N] x) => (float[N,N] y)", body))


def test_two_outputs_of_one_value_keep_their_names(graph, applies):
    model = graph(
        "(float[N,4] x) => (float[N,4] y, float[N,4] z)",
        "a = Relu(x) y = Identity(a) z = Identity(a)",
    )
    changed = applies(RemoveIdentity(), model)
    assert sorted(_ops(changed)) == ["Identity", "Relu"]


def test_padding_by_nothing_goes(graph, applies):
    model = graph(
        "(float[N,4] x, int64[4] p) => (float[N,4] y)",
        "a = Relu(x) b = Pad(a, p) y = Relu(b)",
        p=np.zeros(4, dtype=np.int64),
    )
    assert _ops(applies(RemoveIdentity(), model)) == ["Relu", "Relu"]


@pytest.mark.parametrize(("axes", "pads"), [([2, 3], [1, 2, 3, 4]), ([-1], [1, 2])])
def test_padding_of_some_axes_is_padding_of_all(graph, applies, axes, pads):
    model = graph(
        "(float[N,2,5,6] x, int64[K] p, float v, int64[M] a) => (float[N,2,H,W] y)",
        "y = Pad(x, p, v, a)",
        opset=18,
        p=np.array(pads),
        v=np.array(2.0),
        a=np.array(axes),
    )
    (pad,) = applies(FullPads(), model).graph
    assert len(pad.inputs) == 3 and pad.inputs[1].const_value.size == 8


def test_padding_of_all_axes_or_of_an_unknown_rank_stays(graph, refuses):
    signature = "(float[N,4] x, int64[4] p) => (float[N,M] y)"
    refuses(FullPads(), graph(signature, "y = Pad(x, p)", p=np.ones(4, np.int64)))
    model = graph(
        "(float[N,4] x, int64[2] p, int64[1] a, int64[s] k) => (float[N,M] y)",
        "r = Reshape(x, k) z = Pad(r, p, , a) y = Flatten(z)",
        opset=18,
        p=np.array([1, 2]),
        a=np.array([1]),
    )
    refuses(FullPads(), model)
