"""Whether the training build of ONNX Runtime is the one that Python imports."""

from __future__ import annotations

from importlib import metadata

from onnxruntime.capi import _pybind_state

from onnxq.errors import EngineError

TRAINING_BUILD = "onnxruntime-training-cpu"
VERSION = "1.19.2"
SHADOWS = ("onnxruntime", "onnxruntime-gpu")
"""Distributions that install the same module and overwrite the training build."""


def check_engine() -> None:
    """Make sure that gradients can be built.

    Raises:
        EngineError: another distribution of ONNX Runtime stands beside the training build
            and overwrites its files, or the module has no gradient builder.
    """
    shadows = [name for name in SHADOWS if _is_installed(name)]
    if shadows:
        raise EngineError(_sentence(f"'{shadows[0]}' is installed beside '{TRAINING_BUILD}'"))
    if not hasattr(_pybind_state, "GradientGraphBuilder"):
        raise EngineError(_sentence("the module 'onnxruntime' has no 'GradientGraphBuilder'"))


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _sentence(found: str) -> str:
    others = " ".join((*SHADOWS, TRAINING_BUILD))
    return (
        f"onnxq learns with '{TRAINING_BUILD}' {VERSION} alone, but {found}; run "
        f"'pip uninstall -y {others}' and then 'pip install {TRAINING_BUILD}=={VERSION}'."
    )
