"""Whose kernels compute gradients: those of ONNX Runtime's training build, or ONNX's operators."""

from __future__ import annotations

from importlib import metadata

import onnxruntime as ort

from onnxq.errors import EngineError
from onnxq.options.table import AUTO, EngineName

MICROSOFT = "com.microsoft"
"""The domain of the kernels for gradients."""
ORT_TRAINING, ONNX = "ort-training", "onnx"
"""ConvGrad and its like, and ONNX's standard operators alone."""
TRAINING_BUILD = "onnxruntime-training-cpu"
VERSION = "1.19.2"


def has_training_kernels() -> bool:
    """Whether ConvGrad and its like are there: only the training build has them."""
    return hasattr(ort.capi._pybind_state, "GradientGraphBuilder")


def resolve_engine(engine: EngineName = AUTO) -> str:
    """The kernels that an option stands for, 'ort-training' or 'onnx'.

    Raises:
        EngineError: the training build is asked for, and another ONNX Runtime runs.
    """
    if engine == AUTO:
        return ORT_TRAINING if has_training_kernels() else ONNX
    if engine == ORT_TRAINING and not has_training_kernels():
        raise EngineError(
            f"--engine {ORT_TRAINING} needs {TRAINING_BUILD} {VERSION}, and ONNX Runtime "
            f"{ort.__version__} without its kernels runs here; {_remedy()}, or leave out --engine."
        )
    return engine


def describe_engine(engine: EngineName = AUTO) -> str:
    """The kernels that run, and the version of ONNX Runtime, in words."""
    name = resolve_engine(engine)
    kernels = "kernels of the training build" if name == ORT_TRAINING else "standard operators"
    replaced = _is_replaced() and f"; it has replaced the files of {TRAINING_BUILD}"
    return f"{name} ({kernels}, ONNX Runtime {ort.__version__}{replaced or ''})"


def _remedy() -> str:
    if _is_replaced():
        return (
            f"run 'pip uninstall -y onnxruntime onnxruntime-gpu {TRAINING_BUILD}' and then "
            f"'pip install {TRAINING_BUILD}=={VERSION}'"
        )
    return f"run 'pip install {TRAINING_BUILD}=={VERSION}' on Python 3.11 or 3.12"


def _is_replaced() -> bool:
    """Whether another distribution has written its files over those of the training build."""
    if has_training_kernels():
        return False
    try:
        metadata.version(TRAINING_BUILD)
    except metadata.PackageNotFoundError:
        return False
    return True
