"""The engine: gradients of a student's loss, by ONNX Runtime's training build."""

from onnxq.engine.engine import Engine, check_engine
from onnxq.engine.gradients import ungradable_nodes

__all__ = ["Engine", "check_engine", "ungradable_nodes"]
