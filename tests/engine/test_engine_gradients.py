"""Every gradient that onnxq registers or relies on, against central differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.engine import Engine, ungradable_nodes
from onnxq.runtime.session import open_session

STEP = 2e-3


@dataclass
class Case:
    """y = some nodes of the inputs; integers and constants go in as initializers."""

    body: str
    shapes: dict[str, tuple[int, ...]]
    constants: str = ""
    opset: int = 17
    positive: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.body} @{self.opset}"


def values(shape: tuple[int, ...], seed: int, positive: bool) -> np.ndarray:
    """Distinct values between -3.2 and 3.2 that keep away from multiples of a tenth."""
    size = int(np.prod(shape))
    spacing = 0.1 if size <= 64 else 6.4 / size
    order = np.random.default_rng(seed).permutation(size)
    grid = (order - size // 2) * spacing + spacing / 2
    grid = np.abs(grid) * 0.3 + 0.5 if positive else grid
    return grid.reshape(shape).astype(np.float32)


def model_of(case: Case, output: tuple[int, ...] | None) -> ir.Model:
    def declare(name: str, shape: tuple[int, ...]) -> str:
        # ONNX text writes a scalar as `float` and an unknown shape as `float[]`.
        return f"float[{','.join(map(str, shape))}] {name}" if shape else f"float {name}"

    inputs = [declare(name, shape) for name, shape in case.shapes.items()]
    outputs, tail = "float[] y", ""
    if output is not None:
        inputs.append(declare("w", output))
        outputs = f"float loss, {declare('y', output)}"
        tail = "weighted = Mul(y, w) loss = ReduceSum<keepdims=0>(weighted)"
    version = 8 if case.opset < 19 else 10
    return ir.from_onnx_text(
        f'<ir_version: {version}, opset_import: ["" : {case.opset}]> '
        f"g ({', '.join(inputs)}) => ({outputs}) "
        f"{f'<{case.constants}>' if case.constants else ''} {{ {case.body} {tail} }}"
    )


def check(case: Case, trainable: tuple[str, ...] | None = None) -> None:
    feeds = {
        name: values(shape, seed, name in case.positive)
        for seed, (name, shape) in enumerate(case.shapes.items())
    }
    forward = open_session(model_of(case, None))
    y = forward.run(["y"], feeds)[0]
    w = np.random.default_rng(7).normal(size=y.shape).astype(np.float32)
    model = model_of(case, y.shape)
    names = trainable or tuple(feeds)
    assert ungradable_nodes(model, names) == []
    engine = Engine(model, names, workers=1)
    others = {k: v for k, v in feeds.items() if k not in names}
    _, gradients = engine.gradients({k: feeds[k] for k in names}, [{"w": w, **others}])
    for name in names:
        numeric = central_differences(forward, feeds, name, w)
        assert gradients[name].shape == feeds[name].shape
        tolerance = 5e-3 * (np.abs(numeric).max() + 0.1)  # float32 differences over 4e-3
        np.testing.assert_allclose(gradients[name], numeric, atol=tolerance, err_msg=name)


def central_differences(forward, feeds, name, w) -> np.ndarray:
    result = np.zeros(feeds[name].size)
    for index in range(result.size):
        losses = []
        for sign in (1, -1):
            moved = feeds[name].copy()
            moved.flat[index] += sign * STEP
            y = forward.run(["y"], {**feeds, name: moved})[0]
            losses.append((y.astype(np.float64) * w).sum())
        result[index] = (losses[0] - losses[1]) / (2 * STEP)
    return result.reshape(feeds[name].shape)


IMAGE = {"x": (2, 3, 3, 4)}
BATCH_NORM = {"x": (2, 3, 2, 2), "s": (3,), "b": (3,), "m": (3,), "v": (3,)}

ELEMENTWISE = [
    Case("y = Elu<alpha=0.7>(x)", {"x": (5, 6)}),
    Case("y = Selu(x)", {"x": (5, 6)}),
    Case("y = Celu<alpha=1.5>(x)", {"x": (5, 6)}),
    Case("y = HardSigmoid<alpha=0.3, beta=0.4>(x)", {"x": (5, 6)}),
    Case("y = HardSigmoid(x)", {"x": (5, 6)}),
    Case("y = HardSwish(x)", {"x": (8, 8)}),
    Case("y = Mish(x)", {"x": (5, 6)}, opset=18),
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
    Case("y = ReduceMax<axes=[2,3]>(x)", IMAGE, opset=13),
    Case("y = ReduceMax<keepdims=0>(x, axes)", IMAGE, "int64[2] axes = {2,3}", 18),
    Case("y = ReduceMin<axes=[1], keepdims=0>(x)", IMAGE, opset=13),
    Case("y = ReduceMin<keepdims=0>(x)", IMAGE, opset=18),
    Case("y = ReduceL1<axes=[-1], keepdims=0>(x)", IMAGE),
    Case("y = ReduceSumSquare<axes=[1,2]>(x)", IMAGE),
    Case("y = GlobalMaxPool(x)", IMAGE),
    Case("y = CumSum(x, axis)", {"x": (3, 4)}, "int64 axis = {1}"),
    Case("y = CumSum<reverse=1, exclusive=1>(x, axis)", {"x": (3, 4)}, "int64 axis = {0}"),
]

NORMALISATIONS = [
    Case("y = BatchNormalization(x, s, b, m, v)", BATCH_NORM, positive=("v",), opset=opset)
    for opset in (13, 17)
] + [
    Case(
        "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
        BATCH_NORM | {"x": (6, 3)},
        positive=("v",),
    ),
    Case("y = InstanceNormalization(x, s, b)", IMAGE | {"s": (3,), "b": (3,)}),
    Case("y = LayerNormalization(x, s, b)", {"x": (2, 3, 4), "s": (4,), "b": (4,)}),
    Case("y = LayerNormalization<axis=1>(x, s)", {"x": (2, 3, 4), "s": (3, 4)}),
    Case(
        "y = LayerNormalization<axis=1, epsilon=0.01>(x, s)",
        {"x": (2, 3, 4), "s": (3, 4)},
        opset=18,
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
        13,
    ),
    Case(
        'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        '(x, "", "", n)',
        {"x": (1, 2, 3, 4)},
        "int64[4] n = {1,2,6,12}",
    ),
]

BUILTIN = [
    Case(
        "y = Conv<pads=[0,1,1,0], strides=[2,1], dilations=[1,2]>(x, W, B)",
        {"x": (2, 2, 5, 5), "W": (3, 2, 3, 2), "B": (3,)},
    ),
    Case(
        "y = Conv<group=4, pads=[1,1,1,1]>(x, W, B)",
        {"x": (1, 4, 4, 4), "W": (4, 1, 3, 3), "B": (4,)},
    ),
    Case("y = Conv<strides=[2]>(x, W)", {"x": (2, 2, 6), "W": (3, 2, 3)}),
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
    Case("y = Gelu(x)", {"x": (3, 4)}, opset=20),
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
    Case("y = ReduceMean<axes=[2,3]>(x)", IMAGE, opset=13),
    Case("y = ReduceMean<keepdims=0>(x, axes)", IMAGE, "int64[2] axes = {0,2}", 18),
    Case("y = Concat<axis=1>(a, b)", {"a": (2, 3), "b": (2, 2)}),
    Case("p, q = Split<axis=1>(x, n) y = Mul(p, q)", {"x": (2, 6)}, "int64[2] n = {3,3}"),
    Case("y = Slice(x, s, e, a)", {"x": (3, 6)}, "int64[1] s={1}, int64[1] e={5}, int64[1] a={1}"),
    Case("y = Pad(x, p)", {"x": (2, 3)}, "int64[4] p = {0,1,0,2}"),
    Case("y = Transpose<perm=[1,0]>(x)", {"x": (3, 4)}),
    Case("y = Reshape(x, s)", {"x": (2, 3, 4)}, "int64[2] s = {0,-1}"),
    Case("y = Flatten(x)", {"x": (2, 3, 4)}),
    Case("s = Shape(x) r = Relu(x) z = Flatten(r) y = Reshape(z, s)", {"x": (2, 3, 4)}),
    Case("y = Gather<axis=1>(x, i)", {"x": (3, 4)}, "int64[3] i = {1,1,3}"),
    Case("y = Pow(x, p)", {"x": (3, 4)}, "float p = {2.0}"),
    Case("y = Sqrt(x)", {"x": (3, 4)}, positive=("x",)),
]


@pytest.mark.parametrize("case", ELEMENTWISE + REDUCTIONS + NORMALISATIONS + SPATIAL, ids=str)
def test_registered_gradient(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", BUILTIN, ids=str)
def test_builtin_gradient(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_other_opsets(opset: int) -> None:
    check(Case("y = PRelu(x, s)", {"x": (2, 3, 2, 2), "s": (3, 1, 1)}, opset=opset))
    check(Case("y = InstanceNormalization(x, s, b)", IMAGE | {"s": (3,), "b": (3,)}, opset=opset))


@pytest.mark.parametrize("trainable", [("x",), ("s",), ("b",), ("s", "b"), ("v",), ("x", "m")])
def test_part_of_the_inputs(trainable: tuple[str, ...]) -> None:
    check(Case("y = BatchNormalization(x, s, b, m, v)", BATCH_NORM, positive=("v",)), trainable)


@pytest.mark.parametrize("op_type", ["Round", "Floor", "Ceil", "Sign"])
def test_steps_are_straight_through(op_type: str) -> None:
    model = model_of(Case(f"y = {op_type}(x)", {"x": (3, 4)}), (3, 4))
    x, w = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    _, gradients = Engine(model, ["x"], workers=1).gradients({"x": x}, [{"w": w}])
    np.testing.assert_array_equal(gradients["x"], w)
