"""One stored weight for all layers that share it, each under a scale of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import Feeds, build, quantize, run

from onnxq.graph.scaled_weight import usable_factor
from onnxq.normalise.pipeline import normalise
from onnxq.numerics.packing import collapsed
from onnxq.options.recipe import Recipe

RNG = np.random.default_rng(0)
CHANNELS = 16


def _head(levels: int = 3, *, negative: bool = True) -> ir.Model:
    """A convolution that each level reads, with a BatchNormalization of its own behind it."""
    given: dict[str, np.ndarray | tuple[int, ...]] = {
        "w": (CHANNELS, 3, 3, 3),
        "s": (CHANNELS, CHANNELS, 3, 3),
        "last": (4, CHANNELS, 1, 1),
    }
    body = "x0 = Conv <pads = [1, 1, 1, 1]> (x, w) "
    for level in range(levels):
        given |= {
            f"g{level}": RNG.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
            * (RNG.choice([-1, 1], CHANNELS).astype(np.float32) if negative else np.float32(1)),
            f"b{level}": RNG.normal(size=CHANNELS).astype(np.float32),
            f"m{level}": RNG.normal(size=CHANNELS).astype(np.float32),
            f"v{level}": RNG.uniform(0.5, 2, CHANNELS).astype(np.float32),
        }
        norm = ", ".join(f"{kind}{level}" for kind in "gbmv")
        body += (
            f"c{level} = Conv <pads = [1, 1, 1, 1]> (x{level}, s) "
            f"n{level} = BatchNormalization (c{level}, {norm}) r{level} = Relu (n{level}) "
            f"y{level} = Conv (r{level}, last) "
            f"x{level + 1} = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x{level}) "
        )
    outputs = ", ".join(f"float y{level}" for level in range(levels))
    return build(f"net (float[N, 3, 16, 16] x) => ({outputs}) {{ {body} }}", given, opset=17)


def _tied(table: tuple[int, int] = (200, 32), leading: str = "N, 4") -> ir.Model:
    body = "e = Gather (t, ids) a = MatMul (e, w) b = Tanh (a) tt = Transpose <perm = [1, 0]> (t) "
    return build(
        f"net (int64[{leading}] ids) => (float y) {{ {body} y = MatMul (b, tt) }}",
        {"t": table, "w": (table[1], table[1])},
        opset=17,
    )


def _noise(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 3, 16, 16)).astype(np.float32)}


def _sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


def _large(model: ir.Model) -> list[ir.DataType]:
    values = model.graph.initializers.values()
    return [v.const_value.dtype for v in values if v.const_value.size >= 1024]


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("activation_bits", [8, None])
def test_a_shared_head_is_stored_once(granularity, activation_bits):
    original = _head()
    teacher = normalise(original, [_noise(2)]).model
    recipe = Recipe(granularity=granularity, activation_bits=activation_bits)
    made = quantize(teacher, Feeds([_noise(16)]), recipe)
    assert _large(made.exported) == [ir.DataType.INT8]
    fresh = _noise(8, seed=2)
    expected, found = run(original, fresh), run(made.exported, fresh, optimise=True)
    for name, array in expected.items():
        assert _sqnr(array, found[name]) > 25
    for name, array in run(made.baked, fresh).items():
        np.testing.assert_allclose(found[name], array, atol=0.05 * float(np.abs(array).max()))


def test_each_reader_has_the_scale_of_the_weight_times_its_factor():
    teacher = normalise(_head(), [_noise(2)]).model
    made = quantize(teacher, Feeds([_noise(16)]))
    scales = made.student.weight_scales(made.qparams)
    shared = [spec for spec in made.plan.layers.values() if spec.factor]
    assert len(shared) == 3 and len({spec.weight for spec in shared}) == 1
    nodes = {node.name: node for node in made.exported.graph}
    for spec in shared:
        read = nodes[spec.name].inputs[1].producer()
        wanted = scales[spec.weight] * made.qparams.factors[spec.name]
        np.testing.assert_array_equal(read.inputs[1].const_value.numpy(), wanted)
        assert (wanted < 0).any()


def test_a_factor_that_leaves_channels_dead_gets_a_weight_of_its_own():
    model = _head()
    gamma = model.graph.initializers["g0"]
    dead = gamma.const_value.numpy().copy()
    dead[3] = 0
    gamma.const_value = ir.tensor(dead, name="g0")
    found = normalise(model, [_noise(2)]).model
    convs = [node for node in found.graph if node.op_type == "Conv"]
    owners = [node.inputs[1].producer() for node in convs if node.inputs[0].name.startswith("x")]
    assert sum(owner is not None for owner in owners) == 2
    assert not usable_factor(dead)


@pytest.mark.parametrize("leading", ["N", "N, 4", "N, M"])
def test_a_table_tied_to_the_last_layer_is_stored_once(leading):
    original = _tied(leading=leading)
    shape = (64, 4)[: leading.count(",") + 1]
    ids = {"ids": np.random.default_rng(0).integers(0, 200, shape)}
    found = normalise(original, [ids])
    assert [n.op_type for n in found.model.graph].count("Gemm") == 1
    made = quantize(found.model, Feeds([ids]))
    assert _large(made.exported).count(ir.DataType.FLOAT) == 0
    assert sum(v.const_value.size == 6400 for v in made.exported.graph.initializers.values()) == 1
    (expected,), (given,) = (run(m, ids).values() for m in (original, made.exported))
    assert expected.shape == given.shape and _sqnr(expected, given) > 20


def test_rows_are_looked_up_in_integers(tmp_path: Path):
    body = "e = Gather (t, ids) m = ReduceMean <axes = [1], keepdims = 0> (e) y = MatMul (m, w)"
    model = build(
        f"net (int64[N, 4] ids) => (float[N, 8] y) {{ {body} }}",
        {"t": (200, 32), "w": (32, 8)},
        opset=17,
    )
    made = quantize(model, Feeds([{"ids": np.arange(64).reshape(16, 4)}]))
    assert made.plan.layers["Gather_e"].compute == "weight-only"
    (gather,) = (n for n in made.exported.graph if n.name == "Gather_e")
    assert gather.inputs[0].const_value.dtype == ir.DataType.INT8
    ids = {"ids": np.random.default_rng(1).integers(0, 200, (8, 4))}
    np.testing.assert_allclose(
        run(made.exported, ids)["y"], run(made.baked, ids)["y"], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.full((4, 5), 7.0), (1, 1)),
        (np.arange(3.0)[:, None] * np.ones((1, 6)), (3, 1)),
        (np.arange(6.0).reshape(2, 3), (2, 3)),
        (np.array([0.0, -0.0]), (2,)),
        (np.zeros((0, 3)), (0, 1)),
    ],
)
def test_what_repeats_along_an_axis_is_kept_once(array, shape):
    array = array.astype(np.float32)
    found = collapsed(array)
    assert found.shape == shape
    np.testing.assert_array_equal(np.broadcast_to(found, array.shape), array)
