"""Compress any float ONNX model with unlabelled data into a smaller, faster one."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.api import *  # noqa: F403 - that they can be looked up

__version__ = version("onnxq")


def __getattr__(name: str) -> Any:
    """A public name; the libraries behind it take seconds, so they are loaded at first use."""
    public = importlib.import_module("onnxq.api")
    if name != "__all__" and name not in public.__all__:
        raise AttributeError(f"module 'onnxq' has no attribute '{name}'")
    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("onnxq.api").__all__})
