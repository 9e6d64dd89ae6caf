"""The plan: how each layer and tensor is quantized, decided before anything is run."""

from onnxq.plan.planner import make_plan
from onnxq.plan.spec import LayerSpec, Plan, TensorSpec

__all__ = ["LayerSpec", "Plan", "TensorSpec", "make_plan"]
