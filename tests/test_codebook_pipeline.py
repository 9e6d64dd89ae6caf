"""Codebooks from file to file: learned around, shown in metrics, read back by `inspect`."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import HEAD, compress, image_graph, tables

from onnxq import compare, inspect
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.pipeline import plan_model
from onnxq.report.inspection import plan_rows
from onnxq.report.result import metric_rows
from onnxq.verify.metrics import METADATA_KEY

BODY = "a = Conv <pads = [7, 7, 8, 8]> (x, wide, b6) r = Relu (a) z = Conv (r, v6, c6)"


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path, Path]:
    """A model with one layer large enough for a codebook, its samples, and the output."""
    weight = np.random.default_rng(0).normal(0, 0.05, (6, 3, 16, 16)).astype(np.float32)
    ir.save(image_graph(f"{BODY} {HEAD}", wide=weight), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "model.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"


@pytest.mark.parametrize("bits", [8, None])
def test_from_file_to_file(files, bits):
    model, data, out = files
    recipe = Recipe(epochs=2, batch_size=8, codebook=16, activation_bits=bits)
    result = compress(model, data, recipe, out=out)
    metrics = result.metrics
    onnx.checker.check_model(str(out), full_check=True)
    assert list(metrics.codebooks.values()) == [16]
    assert metrics.student_agreement == 1.0
    assert metrics.integer_layers == (3 if bits else 0)
    assert out.stat().st_size == metrics.size_after
    assert metrics.shipped_after == pytest.approx(len(zlib.compress(out.read_bytes())), abs=16)
    assert metrics.shipped_before == pytest.approx(len(zlib.compress(model.read_bytes())), abs=16)
    names = [row[0] for row in metric_rows(metrics)]
    assert "size, compressed by deflate" in names and "layers as codebooks" in names
    # Other builds of zlib give other sizes: the file does not hold them.
    assert "shipped_after" not in json.loads(ir.load(out).metadata_props[METADATA_KEY])


@pytest.mark.parametrize(("count", "bits"), [(6, 2.6), (16, 4)])
@pytest.mark.parametrize("activation_bits", [8, None])
def test_inspect_reads_back_what_the_plan_said(files, count, bits, activation_bits):
    model, data, out = files
    recipe = Recipe(learn=("none",), codebook=count, activation_bits=activation_bits)
    compress(model, data, recipe, out=out)
    report = plan_model(model, recipe, allow_worse=True)
    planned = plan_rows(report.model, report.plan)
    for before, after in zip(planned, inspect(out).layers, strict=True):
        assert (before.name, before.compute) == (after.name, after.compute)
        assert (before.codebook, before.parameters) == (after.codebook, after.parameters)
    row = planned[0]
    assert (row.codebook, row.num_bits) == (count, pytest.approx(bits))
    assert row.bytes_after < row.parameters
    assert planned[1].reason.split("; ")[-1].startswith("no codebook: ")


@pytest.mark.parametrize("num_bits", [2, 3, 4])
@pytest.mark.parametrize("activation_bits", [8, None])
def test_low_bits_are_read_back_as_codes(files, num_bits, activation_bits):
    model, data, out = files
    recipe = Recipe(epochs=1, batch_size=8, weight_bits=num_bits, activation_bits=activation_bits)
    override = LayerOverride("Conv_a", weight_bits=num_bits)
    recipe = dataclasses.replace(recipe, layers=(override,))
    result = compress(model, data, recipe, out=out)
    assert result.metrics.student_agreement == 1.0
    assert result.metrics.integer_layers == (3 if activation_bits else 0)
    assert not result.metrics.codebooks and "Conv_a" not in result.metrics.saturating
    report = plan_model(model, recipe, allow_worse=True)
    planned, found = plan_rows(report.model, report.plan)[0], inspect(out).layers[0]
    assert (planned.num_bits, planned.codebook) == (found.num_bits, found.codebook)
    assert (found.num_bits, found.codebook) == (num_bits, None)
    assert planned.compute == found.compute
    assert found.bytes_after <= planned.bytes_after < found.parameters
    row = next(row for row in compare(model, out, data).layers if row.name == found.name)
    assert row.num_bits == num_bits


def test_learning_thresholds_leaves_centroids_alone_and_gives_the_same_bytes_again(files):
    model, data, out = files
    recipe = Recipe(epochs=2, batch_size=8, codebook=16, learn=("thresholds",))
    compress(model, data, recipe, out=out)
    first = out.read_bytes()
    compress(model, data, recipe, out=out, force=True)
    assert out.read_bytes() == first
    unlearned = compress(model, data, Recipe(batch_size=8, codebook=16, learn=("none",)))
    kept, found = tables(unlearned.model), tables(ir.load(out))
    assert kept and kept.keys() == found.keys()
    for name in kept:
        np.testing.assert_array_equal(kept[name], found[name])
