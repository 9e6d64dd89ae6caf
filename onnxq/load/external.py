"""External data: tensors whose values are in another file, checked before anything reads them."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from onnxq.errors import ModelError
from onnxq.graph.facts import DEFAULT_DOMAINS
from onnxq.load.structure import nested_protos, node_label
from onnxq.load.tensors import all_tensors, is_external, shape_problem, tensor_bytes

LONGEST_NAME = 10_000
"""Characters of a name at most: names become those of members of archives, of 65,535 bytes."""

CONSTANT_VALUES = {
    "value": onnx.AttributeProto.TENSOR,
    "sparse_value": onnx.AttributeProto.SPARSE_TENSOR,
    "value_float": onnx.AttributeProto.FLOAT,
    "value_floats": onnx.AttributeProto.FLOATS,
    "value_int": onnx.AttributeProto.INT,
    "value_ints": onnx.AttributeProto.INTS,
    "value_string": onnx.AttributeProto.STRING,
    "value_strings": onnx.AttributeProto.STRINGS,
}
"""The types of a Constant's attributes, of which it has one."""


def check_attributes(model: onnx.ModelProto, name: str) -> None:
    """Refuse attributes without a type or a value, empty Constant nodes, and endless names.

    Args:
        model: the message.
        name: the file's name, for the error message.

    Raises:
        ModelError: names the first such node.
    """
    _check(nested_protos(model.graph.node), name, in_function=False)
    for function in model.functions:
        _check(nested_protos(function.node), name, in_function=True)


def _check(nodes: Iterable[onnx.NodeProto], name: str, *, in_function: bool) -> None:
    for node in nodes:
        reason = _refusal(node, in_function=in_function)
        if reason:
            raise ModelError(
                f'The node "{node_label(node)}" ({node.op_type}) of "{name}" {reason}; the file is '
                "damaged, so copy or export it again."
            )


def _refusal(node: onnx.NodeProto, *, in_function: bool) -> str:
    if max(len(each) for each in (node.name, *node.output)) > LONGEST_NAME:
        return f"has a name, or an output with a name, of more than {LONGEST_NAME:,} characters"
    for attribute in node.attribute:
        if attribute.ref_attr_name and in_function:
            continue
        if attribute.ref_attr_name:
            return f'has an attribute "{attribute.name}" that refers to one of a function'
        if attribute.type == onnx.AttributeProto.UNDEFINED:
            return f'has an attribute "{attribute.name}" without a type'
        if attribute.type == onnx.AttributeProto.TENSOR and not attribute.t.data_type:
            return f'has an attribute "{attribute.name}" without its tensor'
    own = node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS
    if own and [CONSTANT_VALUES.get(a.name) == a.type for a in node.attribute] != [True]:
        return "does not hold one value"
    return ""


_MEMORY = "_ORT_MEM_ADDR_"
"""With this in a location ONNX Runtime takes the offset for an address in memory."""

_KEYS = ("location", "offset", "length")


def external_entries(tensor: onnx.TensorProto) -> Mapping[str, str]:
    """Location, offset and length of a tensor's values, as far as the file states them.

    Raises:
        ValueError: one is stated twice, so that readers may take either.
    """
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries and entry.key in _KEYS:
            raise ValueError(f"it gives its {entry.key} twice")
        entries[entry.key] = entry.value
    return entries


def external_path(location: str, folder: Path) -> Path:
    """The file of a location.

    Args:
        location: as the model states it.
        folder: of the model.

    Raises:
        ValueError: it is not an ordinary file in the folder or below, or is a link.
    """
    if not location:
        raise ValueError("it names no file")
    named = f"it names '{location}'"
    windows, parts = PureWindowsPath(location), PurePosixPath(location).parts
    outside = windows.anchor or ".." in windows.parts or PurePosixPath(location).is_absolute()
    if outside or "\0" in location or _MEMORY in location:
        raise ValueError(f"{named}, which is not in the model's folder")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{named}, which is a link and may lead outside the model's folder")
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{named}: {(error.strerror or str(error)).lower()}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{named}, which is not an ordinary file")
    if found.st_nlink > 1:
        raise ValueError(f"{named}, which is a hard link and may be a file of another folder")
    return path


def external_place(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's values; nothing is read.

    Raises:
        ValueError: there is no such place, or its length doesn't match the tensor's type and shape.
    """
    if (problem := shape_problem(tensor)) is not None:
        raise ValueError(problem)
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ValueError("it holds strings, which have no place in a file of their own")
    entries = external_entries(tensor)
    path = external_path(entries.get("location", ""), folder)
    length = tensor_bytes(tensor)
    offset, given = _number(entries, "offset", 0), _number(entries, "length", length)
    if given != length:
        raise ValueError(f"its length is {given} bytes, where its type and shape take {length}")
    if offset + length > path.stat().st_size:
        raise ValueError(f"'{path.name}' ends before the tensor does")
    return path, offset, length


def load_external(tensor: onnx.TensorProto, folder: Path) -> None:
    """Read a tensor's values from their file into the tensor.

    Raises:
        OSError: the file can't be read.
        ValueError: as `external_place`.
    """
    path, offset, length = external_place(tensor, folder)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    tensor.raw_data = data
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def external_files(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    """The files with values of a checked model's tensors, sorted."""
    outside = (tensor for tensor in all_tensors(proto) if is_external(tensor))
    return sorted({external_place(tensor, folder)[0] for tensor in outside})


def _number(entries: Mapping[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        raise ValueError(f"its {key} is '{text}', where a number of bytes is expected")
    return int(text)
