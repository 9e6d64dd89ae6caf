"""Every rule of the engine against central differences, at several opsets, with all kernels."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxq.engine import Engine
from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients
from onnxq.engine.rules import RULES
from onnxq.runtime.session import newest_opset
from tests.engine.finite_differences import Case, check, model_of

R_FREE = "float[4] r = {1,1,1.7,0.6}"
S = "int64[1] a={1}, int64[1] s="
IMAGE = {"x": (2, 3, 3, 4)}
BATCH_NORM = {"x": (2, 3, 2, 2), "s": (3,), "b": (3,), "m": (3,), "v": (3,)}

ELEMENTWISE = [
    Case("y = Elu<alpha=0.7>(x)", {"x": (5, 6)}),
    Case("y = Selu(x)", {"x": (5, 6)}),
    Case("y = Celu<alpha=1.5>(x)", {"x": (5, 6)}),
    Case("y = HardSigmoid<alpha=0.3, beta=0.4>(x)", {"x": (5, 6)}),
    Case("y = HardSigmoid(x)", {"x": (5, 6)}),
    Case("y = HardSwish(x)", {"x": (8, 8)}, opsets=(14, 21)),
    Case("y = Mish(x)", {"x": (5, 6)}, opsets=(18, 21)),
    Case("y = Softplus(x)", {"x": (5, 6)}),
    Case("y = Softsign(x)", {"x": (5, 6)}),
    Case("y = ThresholdedRelu<alpha=0.5>(x)", {"x": (5, 6)}),
    Case("y = PRelu(x, s)", {"x": (2, 3, 2, 2), "s": (3, 1, 1)}),
    Case("y = PRelu(x, s)", {"x": (2, 3, 2, 2), "s": (1,)}),
    Case("y = PRelu(x, s)", {"x": (2, 3), "s": (2, 3)}),
    Case("y = Clip(x, lo, hi)", {"x": (5, 6)}, "float lo = {-0.5}, float hi = {0.6}"),
    Case("lo = Neg(t) y = Clip(x, lo, t)", {"x": (5, 6), "t": ()}, positive=("t",)),
    Case("y = Clip(x, lo)", {"x": (5, 6)}, "float lo = {-0.5}"),
    Case('y = Clip(x, "", hi)', {"x": (5, 6)}, "float hi = {0.6}"),
    Case("y = Clip(x)", {"x": (5, 6)}),
    Case("y = Sum(a, b, c)", {"a": (2, 3), "b": (3,), "c": (2, 1)}),
    Case("y = Dropout(x)", {"x": (3, 4)}),
    Case("y, mask = Dropout(x)", {"x": (3, 4)}),
    Case("y = Where(c, a, b)", {"a": (2, 3), "b": (3,)}, "bool[2,3] c = {1,0,1,0,0,1}"),
    Case("y = Where(c, a, b)", {"a": (2, 3), "b": ()}, "bool[3] c = {1,0,1}"),
]

REDUCTIONS = [
    Case("y = ReduceMax<axes=[2,3]>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceMax<keepdims=0>(x, axes)", IMAGE, "int64[2] axes = {2,3}", (18, 21)),
    Case("y = ReduceMin<axes=[1], keepdims=0>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceMin<keepdims=0>(x)", IMAGE, opsets=(18, 21)),
    Case("y = ReduceL1<axes=[-1], keepdims=0>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceSumSquare<axes=[1,2]>(x)", IMAGE, opsets=(13, 17)),
    *[
        Case(f"y = {op}<keepdims=0>(x, a)", IMAGE, "int64[2] a = {0,-1}", (18, 21), positive=("x",))
        for op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
    ],
    Case("y = ReduceLogSum<axes=[1]>(x)", IMAGE, opsets=(13, 17), positive=("x",)),
    Case("y = ReduceLogSumExp<axes=[1], keepdims=0>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceL2<axes=[2], keepdims=0>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceSum<keepdims=0>(x, a)", IMAGE, "int64[1] a = {-2}"),
    Case("y = ReduceMean(x)", IMAGE),
    Case("y = GlobalMaxPool(x)", IMAGE),
    Case("y = CumSum(x, axis)", {"x": (3, 4)}, "int64 axis = {1}"),
    Case("y = CumSum<reverse=1, exclusive=1>(x, axis)", {"x": (3, 4)}, "int64 axis = {0}"),
]

NORMALISATIONS = [
    Case("y = BatchNormalization(x, s, b, m, v)", BATCH_NORM, positive=("v",)),
    Case(
        "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
        BATCH_NORM | {"x": (6, 3)},
        positive=("v",),
    ),
    Case("y = InstanceNormalization(x, s, b)", IMAGE | {"s": (3,), "b": (3,)}),
    Case(
        "y = LayerNormalization(x, s, b)", {"x": (2, 3, 4), "s": (4,), "b": (4,)}, opsets=(17, 21)
    ),
    Case("y = LayerNormalization<axis=1>(x, s)", {"x": (2, 3, 4), "s": (3, 4)}, opsets=(17, 21)),
    Case(
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        {"x": (2, 4, 3), "s": (2,), "b": (2,)},
        opsets=(18,),
    ),
    Case(
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        {"x": (2, 4, 3), "s": (4,), "b": (4,)},
        opsets=(21,),
    ),
    Case(
        "y = LayerNormalization<axis=1, epsilon=0.01>(x, s)",
        {"x": (2, 3, 4), "s": (3, 4)},
        opsets=(18, 21),
    ),
]

SPATIAL = [
    Case(
        "y = ConvTranspose<strides=[2,2]>(x, W, B)",
        {"x": (2, 4, 3, 3), "W": (4, 3, 3, 3), "B": (3,)},
    ),
    Case(
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, W)",
        {"x": (1, 4, 3, 3), "W": (4, 2, 3, 3)},
    ),
    Case(
        "y = ConvTranspose<group=2, pads=[1,0,1,2], dilations=[1,2]>(x, W)",
        {"x": (1, 4, 4, 4), "W": (4, 2, 3, 3)},
    ),
    Case("y = ConvTranspose<strides=[3]>(x, W)", {"x": (2, 2, 4), "W": (2, 3, 3)}),
    Case("y = DepthToSpace<blocksize=2>(x)", {"x": (2, 8, 2, 3)}),
    Case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', {"x": (2, 8, 2, 3)}),
    Case("y = SpaceToDepth<blocksize=2>(x)", {"x": (2, 2, 4, 6)}),
    Case('y = Resize(x, "", r)', {"x": (1, 2, 3, 4)}, "float[4] r = {1,1,2,3}"),
    Case(
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, "", r)',
        {"x": (1, 2, 3, 4)},
        "float[4] r = {1,1,2,2}",
        (13, 17),
    ),
    Case(
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        '(x, "", "", n)',
        {"x": (1, 2, 3, 4)},
        "int64[4] n = {1,2,6,12}",
    ),
    *[
        Case(f'y = Resize<mode="{mode}"{more}>(x, "", r)', {"x": (2, 2, 3, 4)}, R_FREE)
        for mode, more in (
            ("linear", ""),
            ("linear", ', coordinate_transformation_mode="align_corners"'),
            ("linear", ', coordinate_transformation_mode="asymmetric"'),
            ("cubic", ", cubic_coeff_a=-0.5"),
            ("nearest", ', nearest_mode="ceil"'),
        )
    ],
    Case('y = Resize<mode="linear">(x, "", "", n)', {"x": (1, 2, 3, 4)}, "int64[4] n = {1,2,5,2}"),
    Case(
        'y = Resize<mode="linear", axes=[2,3]>(x, "", "", n)',
        {"x": (1, 2, 3, 4)},
        "int64[2] n = {5,3}",
        (18, 21),
    ),
]

CONVOLUTIONS = [
    Case(
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, W)',
        {"x": (1, 2, 5, 4), "W": (3, 2, 3, 3)},
    ),
    Case(
        'y = Conv<auto_pad="SAME_LOWER">(x, W)',
        {"x": (1, 2, 5, 4), "W": (3, 2, 2, 2)},
    ),
    Case("y = Conv<group=2>(x, W)", {"x": (2, 4, 3, 4), "W": (6, 2, 2, 2)}),
    Case("y = Conv<group=2>(x, W)", {"x": (2, 2, 3, 4), "W": (4, 1, 2, 2)}),
    Case("y = Conv(x, W)", {"x": (2, 2, 3, 4), "W": (3, 2, 1, 1)}),
    Case("y = Conv<strides=[3,2]>(x, W)", {"x": (1, 2, 6, 4), "W": (3, 2, 1, 1)}),
    Case("y = Conv<pads=[1,0,0,1,1,0]>(x, W)", {"x": (1, 2, 3, 2, 3), "W": (2, 2, 2, 2, 2)}),
    Case(
        "y = Conv<pads=[0,1,1,0], strides=[2,1], dilations=[1,2]>(x, W, B)",
        {"x": (2, 2, 5, 5), "W": (3, 2, 3, 2), "B": (3,)},
    ),
    Case(
        "y = Conv<group=4, pads=[1,1,1,1]>(x, W, B)",
        {"x": (1, 4, 4, 4), "W": (4, 1, 3, 3), "B": (4,)},
    ),
    Case("y = Conv<strides=[2]>(x, W)", {"x": (2, 2, 6), "W": (3, 2, 3)}),
]

PRODUCTS = [
    Case("y = Gemm<transA=1, beta=2.0>(a, b, c)", {"a": (4, 3), "b": (4, 5), "c": (3, 1)}),
    Case("y = Gemm<transA=1, transB=1>(a, b)", {"a": (4, 3), "b": (5, 4)}),
    Case("y = Gemm(a, b)", {"a": (3, 4), "b": (4, 5)}),
    Case("y = MatMul(a, b)", {"a": (2, 1, 3, 4), "b": (2, 4, 2)}),
    Case("y = MatMul(a, b)", {"a": (3, 4), "b": (2, 4, 2)}),
    Case("y = MatMul(a, b)", {"a": (2, 3, 4), "b": (4,)}),
    Case("y = MatMul(a, b)", {"a": (4,), "b": (2, 4, 3)}),
    Case("y = MatMul(a, b)", {"a": (4,), "b": (4, 3)}),
    Case("y = MatMul(a, b)", {"a": (4,), "b": (4,)}),
    Case('y = Einsum<equation="bij,bjk->bik">(a, b)', {"a": (2, 3, 4), "b": (2, 4, 2)}),
    Case('y = Einsum<equation="nchw->nc">(x)', IMAGE),
    Case('y = Einsum<equation="...i,ij">(a, b)', {"a": (2, 3, 4), "b": (4, 2)}),
    Case("y = Gemm<transB=1, alpha=0.5>(a, b, c)", {"a": (3, 4), "b": (5, 4), "c": (5,)}),
    Case("y = MatMul(a, b)", {"a": (2, 3, 4), "b": (4, 2)}),
    Case("y = Mul(x, x)", {"x": (3, 4)}),
    Case("y = Div(a, b)", {"a": (2, 3, 2), "b": (3, 1)}, positive=("b",)),
    Case("y = Max(a, b)", {"a": (3, 4), "b": (4,)}),
    Case("y = Relu(x)", {"x": (3, 4)}),
    Case("y = LeakyRelu<alpha=0.2>(x)", {"x": (3, 4)}),
    Case("y = Sigmoid(x)", {"x": (3, 4)}),
    Case("y = Tanh(x)", {"x": (3, 4)}),
    Case("y = Erf(x)", {"x": (3, 4)}),
    Case("y = Gelu(x)", {"x": (3, 4)}, opsets=(20, 21)),
    Case("y = Softmax(x)", {"x": (2, 3, 2)}),
    Case("y = Softmax<axis=1>(x)", {"x": (2, 3, 2)}),
    Case("y = LogSoftmax(x)", {"x": (3, 4)}),
    Case("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": (1, 2, 4, 4)}),
    Case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", {"x": (1, 2, 4, 4)}),
    Case("y = AveragePool<kernel_shape=[2,2]>(x)", {"x": (2, 2, 4, 4)}),
    Case('y = AveragePool<kernel_shape=[2,2], auto_pad="VALID">(x)', {"x": (2, 2, 4, 4)}),
    Case("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": (2, 2, 5, 4)}),
    Case("y = AveragePool<kernel_shape=[3], strides=[2], pads=[1,0]>(x)", {"x": (2, 2, 7)}),
    Case(
        "y = AveragePool<kernel_shape=[2,3], pads=[1,0,0,2], count_include_pad=1>(x)",
        {"x": (2, 2, 5, 4)},
    ),
    Case("y = GlobalAveragePool(x)", IMAGE),
    Case("y = ReduceMean<axes=[2,3]>(x)", IMAGE, opsets=(13, 17)),
    Case("y = ReduceMean<keepdims=0>(x, axes)", IMAGE, "int64[2] axes = {0,2}", (18, 21)),
    Case("y = Pow(x, p)", {"x": (3, 4)}, "float p = {2.0}"),
    Case("y = Sqrt(x)", {"x": (3, 4)}, positive=("x",)),
    Case("y = Pow(x, p)", {"x": (3, 4), "p": (4,)}, positive=("x",)),
    Case("y = Add(a, b)", {"a": (3, 4), "b": (4,)}),
    Case("y = Sub(a, b)", {"a": (3, 1), "b": (3, 4)}),
    Case("y = Mul(a, b)", {"a": (3, 1), "b": (2, 1, 4)}),
    Case("y = Min(a, b)", {"a": (3, 4), "b": (4,)}),
    Case("n = Mul(c, k) y = Max(a, n)", {"a": (3, 4), "c": (3, 1)}, "float k = {0.77}"),
    Case("y = Mean(a, b)", {"a": (3, 4), "b": (4,)}),
    *[
        Case(f"y = {op}(x)", {"x": (3, 4)})
        for op in ("Abs", "Cos", "Exp", "Identity", "Neg", "Sin")
    ],
    *[Case(f"y = {op}(x)", {"x": (3, 4)}, positive=("x",)) for op in ("Log", "Reciprocal")],
    Case('y = Gelu<approximate="tanh">(x)', {"x": (3, 4)}, opsets=(20, 21)),
    Case("y = Expand(x, s)", {"x": (3, 1)}, "int64[3] s = {2,1,4}"),
    Case("h = Cast<to=11>(x) y = Cast<to=1>(h)", {"x": (3, 4)}),
    Case("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {"x": (1, 2, 5, 6)}),
    Case("y = MaxPool<kernel_shape=[2], dilations=[2], ceil_mode=1>(x)", {"x": (2, 2, 7)}),
    Case("y = SoftmaxCrossEntropyLoss(x, l)", {"x": (3, 4)}, "int64[3] l = {1,0,3}"),
    Case(
        'y = SoftmaxCrossEntropyLoss<reduction="none", ignore_index=-1>(x, l, w0)',
        {"x": (2, 3, 2)},
        "int64[2,2] l = {1,-1,2,0}, float[3] w0 = {0.5,2,1}",
    ),
    Case(
        "y = SoftmaxCrossEntropyLoss<ignore_index=1>(x, l, w0)",
        {"x": (3, 3)},
        "int64[3] l = {1,2,0}, float[3] w0 = {0.5,2,1}",
    ),
]

LAYOUT = [
    Case("y = Concat<axis=1>(a, b)", {"a": (2, 3), "b": (2, 2)}),
    Case("p, q = Split<axis=1>(x, n) y = Mul(p, q)", {"x": (2, 6)}, "int64[2] n = {3,3}"),
    Case("y = Slice(x, s, e, a)", {"x": (3, 6)}, "int64[1] s={1}, int64[1] e={5}, int64[1] a={1}"),
    Case("y = Pad(x, p)", {"x": (2, 3)}, "int64[4] p = {0,1,0,2}"),
    Case("y = Transpose<perm=[1,0]>(x)", {"x": (3, 4)}),
    Case("y = Reshape(x, s)", {"x": (2, 3, 4)}, "int64[2] s = {0,-1}"),
    Case("y = Flatten(x)", {"x": (2, 3, 4)}),
    Case("s = Shape(x) r = Relu(x) z = Flatten(r) y = Reshape(z, s)", {"x": (2, 3, 4)}),
    Case("y = Gather<axis=1>(x, i)", {"x": (3, 4)}, "int64[3] i = {1,1,3}"),
    Case("p, q = Split<axis=1>(x, n) y = Relu(q)", {"x": (2, 6)}, "int64[2] n = {2,4}"),
    Case("y = Slice(x, s, e, a, t)", {"x": (3, 6)}, S + "{-1}, int64[1] e={-6}, int64[1] t={-2}"),
    Case("y = Slice(x, s, e, a, t)", {"x": (3, 6)}, S + "{0}, int64[1] e={9}, int64[1] t={2}"),
    Case("y = Slice(x, s, e)", {"x": (3, 6)}, "int64[2] s={-2,1}, int64[2] e={99,-1}"),
    *[
        Case(f'y = Pad<mode="{mode}">(x, p)', {"x": (3, 4)}, "int64[4] p = {1,2,2,0}")
        for mode in ("reflect", "edge")
    ],
    Case("y = Pad(x, p, v)", {"x": (2, 3)}, "int64[4] p = {1,1,0,2}, float v = {2.0}"),
    Case('y = Pad(x, p, "", a)', {"x": (2, 3)}, "int64[2] p = {1,2}, int64[1] a = {1}", (18, 21)),
    Case("y = Transpose(x)", {"x": (2, 3, 4)}),
    Case("y = Transpose<perm=[2,0,1]>(x)", {"x": (2, 3, 4)}),
    Case("y = Squeeze(x, a)", {"x": (2, 1, 4)}, "int64[1] a = {1}"),
    Case("y = Unsqueeze(x, a)", {"x": (2, 4)}, "int64[1] a = {1}"),
    Case("y = Tile(x, r)", {"x": (2, 3)}, "int64[2] r = {3,2}"),
    Case("y = Gather(x, i)", {"x": (3, 4)}, "int64 i = {-1}"),
    Case("y = GatherElements<axis=1>(x, i)", {"x": (2, 3)}, "int64[2,2] i = {1,1,0,2}"),
    Case("y = GatherND(x, i)", {"x": (3, 2)}, "int64[3,1] i = {1,0,1}"),
    Case(
        "y = ScatterElements<axis=1>(x, i, u)",
        {"x": (2, 3), "u": (2, 2)},
        "int64[2,2] i = {1,0,0,2}",
    ),
    Case("y = ScatterND(x, i, u)", {"x": (3, 2), "u": (2, 2)}, "int64[2,1] i = {2,0}"),
    Case(
        'y = ScatterND<reduction="add">(x, i, u)',
        {"x": (3, 2), "u": (2, 2)},
        "int64[2,1] i = {2,2}",
        (16, 21),
    ),
    Case("y, i = TopK<axis=0, largest=0>(x, k)", {"x": (4, 3)}, "int64[1] k = {2}"),
    Case("y = Trilu<upper=0>(x, k)", {"x": (3, 4)}, "int64 k = {1}", (14, 21)),
]


STEPS = {"Ceil", "Floor", "Round", "Sign"}
CASES = [
    *ELEMENTWISE, *REDUCTIONS, *NORMALISATIONS, *SPATIAL, *CONVOLUTIONS, *PRODUCTS, *LAYOUT
]  # fmt: skip
NEWEST = min(newest_opset(), onnx.defs.onnx_opset_version())
"""Cases that are right at opset 21 are tried there too."""
AT_OPSETS = [
    (case, opset)
    for case in CASES
    for opset in sorted({*case.opsets, *([NEWEST] if 21 in case.opsets else [])})
]
KERNELS = (
    "Conv", "ConvTranspose", "LayerNormalization", "LeakyRelu", "Relu", "Slice", "Softmax",
)  # fmt: skip
WITH_KERNELS = [
    (case, opset)
    for case, opset in AT_OPSETS
    if re.match(rf"y = ({'|'.join(KERNELS)})\b", case.body)
]


@pytest.mark.parametrize(("case", "opset"), AT_OPSETS, ids=str)
def test_gradient(case: Case, opset: int) -> None:
    check(case, opset)


@pytest.mark.parametrize(("case", "opset"), WITH_KERNELS, ids=str)
def test_gradient_in_standard_operators(case: Case, opset: int) -> None:
    check(case, opset, kernels="onnx")


def test_every_rule_has_a_case() -> None:
    tried = {op for case in CASES for op in re.findall(r"= (\w+)[<(]", case.body)}
    assert set(RULES) - STEPS <= tried


@pytest.mark.parametrize("op_type", sorted(set(RULES) - STEPS))
def test_a_wrong_sign_is_found(op_type: str, monkeypatch) -> None:
    right = RULES[op_type]

    def wrong(form: Form, b: Builder) -> Gradients:
        found = right.write(form, b)
        # One node has the wrong sign: neither those of the loss, nor the other of two casts.
        if form.node.outputs[0].name in ("weighted", "loss", "h"):
            return found
        return {index: b.op("Neg", each) for index, each in found.items()}

    monkeypatch.setitem(RULES, op_type, replace(right, write=wrong))
    case = next(case for case in CASES if re.search(rf"= {op_type}[<(]", case.body))
    with pytest.raises(AssertionError, match="Not equal"):
        check(case, case.opsets[-1])


@pytest.mark.parametrize("trainable", [("x",), ("s",), ("b",), ("s", "b"), ("v",), ("x", "m")])
def test_part_of_the_inputs(trainable: tuple[str, ...]) -> None:
    case = Case("y = BatchNormalization(x, s, b, m, v)", BATCH_NORM, positive=("v",))
    check(case, 17, trainable)


@pytest.mark.parametrize("op_type", sorted(STEPS))
def test_steps_are_straight_through(op_type: str) -> None:
    model = model_of(Case(f"y = {op_type}(x)", {"x": (3, 4)}), 17, (3, 4))
    x, w = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    _, gradients = Engine(model, ["x"], workers=1).gradients({"x": x}, [{"w": w}])
    np.testing.assert_array_equal(gradients["x"], w)
