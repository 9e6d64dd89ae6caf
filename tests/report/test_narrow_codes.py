"""What `inspect` says of codes that are narrower than what holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq import Recipe, compress, inspect


@pytest.mark.parametrize("weight_bits", [3, 5])
def test_codes_too_few_to_be_packed_have_their_own_width(
    sample_models: Path, tmp_path: Path, weight_bits: int
) -> None:
    recipe = Recipe(samples=32, learn=("none",), weight_bits=weight_bits)
    data, out = sample_models / "digits" / "unlabelled", tmp_path / "out.onnx"
    plan = compress(sample_models / "digits_mobilenet.onnx", data, recipe, out=out).plan
    rows = {row.name: row for row in inspect(out).layers}
    assert rows.keys() == plan.layers.keys()
    assert any(s.packed for s in plan.layers.values()) and any(
        not s.packed and s.num_bits == weight_bits for s in plan.layers.values()
    )
    for name, spec in plan.layers.items():
        assert rows[name].num_bits == spec.num_bits
        assert (rows[name].bytes_after < rows[name].parameters) == spec.packed
