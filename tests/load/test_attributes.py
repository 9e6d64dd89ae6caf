"""Damaged attributes are found before anything reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxq.errors import ModelError
from onnxq.load.model import load_model

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 4] y) {
    c = Constant <value = float[4] {1, 2, 3, 4}> ()
    a = Flatten <axis = 1> (x)
    y = Add (a, c)
}"""


def _no_type(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].ClearField("type")


def _no_tensor(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ClearField("t")


def _other_name(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].name = "values"


def _nothing(model: onnx.ModelProto) -> None:
    del model.graph.node[0].attribute[:]


def _of_a_function(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].ref_attr_name = "axis"


def _endless_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "a" * 10_001


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_type, 'an attribute "axis" without a type'),
        (_no_tensor, 'an attribute "value" without its tensor'),
        (_other_name, "does not hold one value"),
        (_of_a_function, 'an attribute "axis" that refers to one of a function'),
        (_endless_name, "a name of more than|of more than 10,000 characters"),
        (_nothing, "does not hold one value"),
    ],
)
def test_a_damaged_attribute_is_a_sentence(
    damage: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(TEXT)
    onnx.save(model, tmp_path / "whole.onnx")
    assert load_model(tmp_path / "whole.onnx").graph.outputs[0].name == "y"
    damage(model)
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(ModelError, match=said):
        load_model(tmp_path / "damaged.onnx")
