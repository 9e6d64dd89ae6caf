"""Every byte of a file, by what it is and whether it is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxq.load.contents import FUNCTION, OUTPUT, SUBGRAPH, Contents, Reader, StoredTensor
from onnxq.plan.operators import RECURRENT_OPERATORS, WEIGHT_OPERATORS

GRAPH = "graph: nodes, names, shapes"
GAPS = "external data that no tensor names"

_BIASES = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias."""

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

NO_WEIGHTS = "they are no weights"

_REASONS = {
    "BatchNormalization": "folded into the layer before it where there is one",
    "Gather": "a table that is looked up and not multiplied",
    SUBGRAPH: "they are inside a sub-graph (If, Loop or Scan)",
    FUNCTION: "they are inside a function, which compress writes out where it is called",
}


@dataclass(frozen=True)
class Fates:
    """What becomes of the layers of a file.

    Attributes:
        names: of the nodes of the main graph, in their order, as layers are called.
        nodes: why a layer stays float, or None where it is quantized, by its name.
        weights: the same by the name of its weights.
    """

    names: Sequence[str]
    nodes: Mapping[str, str | None]
    weights: Mapping[str, str | None]

    def of(self, tensor: StoredTensor) -> list[tuple[Reader, str | None]]:
        """The layers that read a tensor, with their fates.

        A layer may be known by its weights alone: simplification gives new names to nodes.
        """
        found = []
        for reader in tensor.readers:
            name = "" if reader.place is None else self.names[reader.place]
            if name in self.nodes:
                found.append((reader, self.nodes[name]))
            elif tensor.name in self.weights and reader.operator in WEIGHT_OPERATORS:
                found.append((reader, self.weights[tensor.name]))
        return found


@dataclass(frozen=True)
class ContentRow:
    """Bytes of a file that are of one kind.

    Attributes:
        what: the kind.
        tensors: number of tensors; shared ones count once.
        bytes: as the file stores them.
        quantized: whether they are weights that become integers, or are.
        largest: name of the largest of the tensors.
        reason: why they are not quantized; empty where there is nothing to say.
    """

    what: str
    tensors: int
    bytes: int
    quantized: bool = False
    largest: str = ""
    reason: str = ""


def content_rows(contents: Contents, fates: Fates) -> list[ContentRow]:
    """All bytes of a file, the largest kind first; the sum is the file's size."""
    groups: dict[tuple[str, bool, str], list[StoredTensor]] = {}
    for tensor in contents.tensors:
        groups.setdefault(_kind(tensor, fates), []).append(tensor)
    rows = [
        ContentRow(
            what,
            len(group),
            sum(tensor.bytes for tensor in group),
            quantized,
            max(group, key=lambda tensor: tensor.bytes).name,
            reason,
        )
        for (what, quantized, reason), group in groups.items()
    ]
    rows.append(ContentRow(GRAPH, 0, contents.graph))
    if contents.gaps:
        rows.append(ContentRow(GAPS, 0, contents.gaps))
    return sorted(rows, key=lambda row: -row.bytes)


def _kind(tensor: StoredTensor, fates: Fates) -> tuple[str, bool, str]:
    """What a tensor is, whether it is quantized, and why not."""
    if not tensor.readers:
        return "constants that nothing reads", False, "compress leaves them out"
    reader = tensor.readers[0]
    if any(each.operator in _QUANTIZERS and each.index for each in tensor.readers):
        return "scales and zero points of tensors", False, NO_WEIGHTS
    if layers := fates.of(tensor):
        # What layers share is quantized where it is for one of them, and weights before biases.
        return min((_of_layer(*each) for each in layers), key=lambda kind: (not kind[1], kind[2]))
    if tensor.size == 1:
        return "single numbers", False, NO_WEIGHTS
    if not tensor.dtype.is_floating_point() and reader.index is not None:
        return "shapes, indices and other integers", False, NO_WEIGHTS
    if reader.operator == OUTPUT:
        return "constants that the graph returns", False, "the graph gives them unchanged"
    if reader.nested:
        return f"{_role(reader)}, in a {reader.nested}", False, _REASONS[reader.nested]
    if reader.operator in WEIGHT_OPERATORS:
        return _role(reader), False, "normalisation makes something else of it"
    return _role(reader), False, _REASONS.get(reader.operator, "only weights are quantized")


def _of_layer(reader: Reader, reason: str | None) -> tuple[str, bool, str]:
    if _is_bias(reader):
        return _role(reader), False, reason or "int32 where the layer runs in integers"
    return _role(reader), reason is None, reason or ""


def _role(reader: Reader) -> str:
    operator = reader.operator
    if _is_bias(reader):
        return f"biases of {operator}"
    if reader.index is None:
        return f"attributes of {operator}"
    if operator == "Gather":
        return "tables of Gather"
    if operator in (*WEIGHT_OPERATORS, *RECURRENT_OPERATORS, "Einsum"):
        return f"weights of {operator}"
    return f"parameters of {operator}"


def _is_bias(reader: Reader) -> bool:
    return reader.operator in _BIASES and reader.index == 2
