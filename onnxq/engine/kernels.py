"""What the ONNX Runtime that is there has beside ONNX's own operators."""

from __future__ import annotations

from onnxruntime.capi import _pybind_state

MICROSOFT = "com.microsoft"
"""The domain of the kernels for gradients."""


def has_training_kernels() -> bool:
    """Whether ConvGrad and its like are there: only the training build has them."""
    return hasattr(_pybind_state, "GradientGraphBuilder")
