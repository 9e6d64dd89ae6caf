"""The one seam to ONNX Runtime's training build: gradients of a student's loss."""

from onnxq.learn.engine.availability import check_engine
from onnxq.learn.engine.engine import Engine
from onnxq.learn.engine.ungradable import ungradable_nodes

__all__ = ["Engine", "check_engine", "ungradable_nodes"]
