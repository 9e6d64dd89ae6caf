"""The engine: reverse mode over onnx-ir, run by a plain inference session."""

from onnxq.engine.engine import Engine
from onnxq.engine.kernels import describe_engine, resolve_engine
from onnxq.engine.reverse import ungradable_nodes

__all__ = ["Engine", "describe_engine", "resolve_engine", "ungradable_nodes"]
