"""The engine: reverse mode over onnx-ir, run by a plain inference session."""

from onnxq.engine.engine import Engine, check_engine
from onnxq.engine.ungradable import ungradable_nodes

__all__ = ["Engine", "check_engine", "ungradable_nodes"]
