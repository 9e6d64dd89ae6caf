"""Model files from ONNX text, and what loading them says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxq.errors import ModelError
from onnxq.load.model import load_model
from onnxq.runtime.session import open_session


def parse(text: str, imports: str = '"" : 17', ir_version: int = 8) -> onnx.ModelProto:
    header = f"<ir_version: {ir_version}, opset_import: [{imports}]>"
    return onnx.parser.parse_model(f"{header} {text}")


def save(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refusal(folder: Path, proto: onnx.ModelProto) -> str:
    """The one sentence that a file is refused in."""
    path = save(folder, proto)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def operators(folder: Path, proto: onnx.ModelProto, x: np.ndarray, same: bool = True) -> list[str]:
    """The operators of the loaded model, which gives what the file gives in ONNX Runtime."""
    path = save(folder, proto)
    model = load_model(path)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = open_session(model, optimise=False).run(None, {"x": x})
    if same:
        expected = open_session(path, optimise=False).run(None, {"x": x})
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert not model.functions
    return [node.op_type for node in model.graph]
