"""What a compressed file says of itself: its own size, and that it is hardly smaller."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_graphs import small_graph

from onnxq.errors import WorseError
from onnxq.export.save import model_bytes
from onnxq.options.recipe import Recipe
from onnxq.verify.metrics import METADATA_KEY, Metrics
from onnxq.verify.result import check_smaller, write_metadata


def written(before: int) -> tuple[Metrics, Metrics, int]:
    """Metrics as they are returned and as the file has them, and the bytes of the file."""
    model = small_graph("residual")
    metrics = Metrics(before, 0, notes=["a note"], equalization="none")
    found = write_metadata(model, metrics, Recipe(), None)
    return found, Metrics.from_json(model.metadata_props[METADATA_KEY]), model_bytes(model)


def test_a_file_that_is_hardly_smaller_says_so():
    much_smaller, _, size = written(10**6)
    assert much_smaller.notes == ["a note"] and much_smaller.size_after == size
    found, stored, size = written(size + 200)
    assert 0.9 * found.size_before < size == found.size_after == stored.size_after
    assert found.notes == stored.notes == ["a note", found.notes[-1]]
    assert "times the original's size" in found.notes[-1]


def test_notes_are_left_out_where_they_would_make_the_file_larger():
    _, _, size = written(10**6)
    found, stored, shorter = written(size - 100)
    assert shorter < size - 100 and stored.notes == []
    assert stored.equalization == "none" and stored.size_after == shorter
    assert found.notes == ["a note"]


def test_a_file_that_is_no_smaller_is_refused(tmp_path):
    model = small_graph("residual")
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(WorseError, match=r"would have [\d,]+ bytes, and '.*' has [\d,]+: nothing"):
        check_smaller(model, tmp_path / "model.onnx", Recipe(), None)
