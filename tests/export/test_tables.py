"""Tables of rows: looked up as packed bytes, and unpacked row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Feeds, Quantized, build, quantize, run

from onnxq.options.recipe import Recipe
from onnxq.pipeline import compress
from onnxq.plan.spec import weight_bytes
from onnxq.report.inspection import inspect
from onnxq.verify.compare import compare
from onnxq.verify.kernels import optimised_nodes

ROWS = 400
IDS = {"ids": np.random.default_rng(1).integers(-ROWS, ROWS, (64, 4))}


def _network(width: int = 33, depth: tuple[int, ...] = (), *, twice: bool = False) -> ir.Model:
    """A table, the mean of the rows looked up, and a MatMul; maybe a second lookup."""
    given = {"t": (ROWS, *depth, width), "w": (width, 8)}
    shape = ", ".join(map(str, ("N", *depth, 8)))
    more = "f = Gather (t, other) s = Add (e, f) " if twice else "s = Identity (e) "
    inputs = "int64[N, 4] ids" + (", int64[N, 4] other" if twice else "")
    body = f"e = Gather (t, ids) {more} m = ReduceMean <axes = [1], keepdims = 0> (s)"
    text = f"net ({inputs}) => (float[{shape}] y) {{ {body} y = MatMul (m, w) }}"
    return build(text, given, opset=17)


def _check(made: Quantized, feeds: dict[str, np.ndarray]) -> None:
    """The file is valid, and gives what the student gives."""
    onnx.checker.check_model(ir.to_proto(made.exported), full_check=True)
    expected = run(made.baked, feeds)["y"]
    np.testing.assert_array_equal(run(made.exported, feeds)["y"], expected)
    found = run(made.exported, feeds, optimise=True)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"weight_bits": 4}, {"weight_bits": 3}, {"weight_bits": 2},
                                     {"codebook": 16}, {"codebook": 5}])  # fmt: skip
@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("shape", [(32, ()), (33, ()), (9, (4,))])
def test_packed_rows_are_looked_up_before_they_are_unpacked(options, granularity, shape):
    recipe = Recipe(granularity=granularity, **options)
    made = quantize(_network(*shape), Feeds([IDS]), recipe)
    spec = made.plan.layers["Gather_e"]
    (gather,) = (n for n in made.exported.graph if n.name == "Gather_e")
    table = gather.inputs[0].const_value
    assert table.dtype == ir.DataType.UINT8 and len(table.numpy()) == ROWS
    _check(made, IDS)
    assert spec.parameters not in [
        value.const_value.size
        for node in optimised_nodes(made.exported)
        for value in node.inputs
        if value is not None and value.const_value is not None
    ]
    values = made.exported.graph.initializers.values()
    stored = sum(v.const_value.nbytes for v in values) - made.plan.layers["MatMul_y"].parameters
    assert weight_bytes(spec, integer=False) == pytest.approx(stored, abs=600)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_two_lookups_is_stored_once(bits):
    made = quantize(_network(twice=True), Feeds([{**IDS, "other": IDS["ids"][::-1].copy()}]),
                    Recipe(weight_bits=bits))  # fmt: skip
    large = [v for v in made.exported.graph.initializers.values() if v.const_value.size > 2 * ROWS]
    assert len(large) == 1
    _check(made, {**IDS, "other": IDS["ids"] // 2})


@pytest.mark.parametrize("last", ["MatMul (a, w)", "Gemm <transB = 1> (a, t)"])
def test_a_table_is_no_int4_tensor(last):
    body = f"e = Gather (t, ids) a = Tanh (e) y = {last}"
    model = build(
        f"net (int64[N] ids) => (float[N, {ROWS}] y) {{ {body} }}",
        {"t": (ROWS, 32)} | ({"w": (32, ROWS)} if "w" in last else {}),
        opset=21,
    )
    ids = {"ids": IDS["ids"][:, 0]}
    made = quantize(model, Feeds([ids]), Recipe(weight_bits=4, target="int4", first_last_bits=4))
    assert not made.plan.layers["Gather_e"].int4
    _check(made, ids)


@pytest.mark.parametrize(("options", "bits", "codebook"), [
    ({}, 8, None), ({"weight_bits": 3}, 3, None), ({"codebook": 16}, 4, 16),
])  # fmt: skip
def test_inspect_and_compare_read_tables(options, bits, codebook, tmp_path: Path):
    model, data, out = (tmp_path / name for name in ("m.onnx", "d.npz", "o.onnx"))
    ir.save(_network(), model)
    np.savez(data, ids=IDS["ids"])
    recipe = Recipe(learn=("none",), **options)
    compress(model, data, recipe, out=out, allow_worse=True)
    (row,) = (each for each in inspect(out).layers if each.name == "Gather_e")
    assert (row.parameters, row.num_bits, row.codebook) == (33 * ROWS, bits, codebook)
    (layer,) = (each for each in compare(model, out, data).layers if each.name == "Gather_e")
    assert layer.compute == "weight-only"
    assert layer.weight_sqnr_db == pytest.approx(layer.sqnr_db, abs=2)
