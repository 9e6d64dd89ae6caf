"""Large weights in files, which sessions map into memory.

A session that is opened from bytes holds each weight twice while it opens, and a third time in the
layout of its kernels. For models with large weights, sessions read a temporary file per weight. It
is written once, shared by all graphs that hold the same tensor, and deleted with the tensor.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import OutputError
from onnxq.runtime.temporary import temporary_file

LARGE = 64 * 2**20
"""Bytes of weights from which a model is large."""

SMALLEST = 2**20
"""Bytes of a weight that is worth a file: smaller ones stay in the graph."""


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the main graph's initializers."""
    values = model.graph.initializers.values()
    return sum(v.const_value.nbytes for v in values if v.const_value is not None)


def is_large(model: ir.Model) -> bool:
    """Whether sessions read the weights from files: they are large, or in files already."""
    values = model.graph.initializers.values()
    outside = any(isinstance(v.const_value, ir.ExternalTensor) for v in values)
    return outside or weight_bytes(model) >= LARGE


class WeightFiles:
    """The files of the tensors that exist."""

    def __init__(self) -> None:
        self._paths: weakref.WeakKeyDictionary[ir.TensorProtocol, Path]
        self._paths = weakref.WeakKeyDictionary()

    def mapped(self, model: ir.Model) -> ir.Model:
        """A copy of a model that refers to a file for each of its large weights.

        Raises:
            OutputError: the disk is full.
        """
        copy = model.clone(deep_copy=False)
        for value in copy.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes >= SMALLEST:
                value.const_value = self._external(tensor, str(value.name))
        return copy

    def _external(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        shape = ir.Shape(tensor.numpy().shape)
        if isinstance(tensor, ir.ExternalTensor):
            path, offset = Path(tensor.path).absolute(), tensor.offset
        else:
            path, offset = self._path(tensor), 0
        return ir.ExternalTensor(path, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name)

    def _path(self, tensor: ir.TensorProtocol) -> Path:
        if tensor not in self._paths:
            self._paths[tensor] = _write(tensor.numpy())
            weakref.finalize(tensor, self._paths[tensor].unlink, missing_ok=True)
        return self._paths[tensor]


def link_weights(path: Path) -> None:
    """Link the weight files that a model's file names into its folder, and name the links instead.

    ONNX Runtime 1.32 opens no weights outside of the model's folder. Where a file can't be linked,
    as from another disk, it is copied.

    Raises:
        OutputError: the disk is full.
    """
    model, names = ir.load(path), dict[str, str]()
    for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        source = str(tensor.path)
        if source not in names:
            names[source] = f"{len(names)}.weights"
            _link(Path(source), path.with_name(names[source]))
        value.const_value = ir.ExternalTensor(
            names[source], tensor.offset, tensor.length, tensor.dtype,
            shape=tensor.shape, name=tensor.name, base_dir=path.parent,
        )  # fmt: skip
    ir.save(model, path)


def _link(source: Path, link: Path) -> None:
    try:
        link.hardlink_to(source)
    except OSError:
        try:
            shutil.copyfile(source, link)
        except OSError as error:
            raise _no_room(error) from error


def _write(array: np.ndarray) -> Path:
    try:
        path = temporary_file(".weights")
        np.ascontiguousarray(array).tofile(path)
    except OSError as error:
        raise _no_room(error) from error
    return path


def _no_room(error: OSError) -> OutputError:
    return OutputError(
        f"the temporary folder '{tempfile.gettempdir()}' has no room for the model's weights "
        f"({error.strerror or error}); free some space or set TMPDIR to another folder"
    )
