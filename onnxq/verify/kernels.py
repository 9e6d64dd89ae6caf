"""The kernels that ONNX Runtime really runs, read from the graph that its optimizer writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.errors import OutputError
from onnxq.graph.operators import TABLE
from onnxq.load.read import read_graph
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.runtime.session import open_session
from onnxq.runtime.temporary import temporary_folder

_INTEGER = (
    "QLinearConv ConvInteger QGemm QLinearMatMul MatMulInteger MatMulIntegerToFloat "
    "DynamicQuantizeMatMul QLinearAdd QLinearMul QLinearConcat QLinearAveragePool "
    "QLinearGlobalAveragePool QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QLinearWhere "
    "QLinearReduceMean NhwcMaxPool"
)
INTEGER_KERNELS = frozenset(_INTEGER.split())
"""Operators that compute on integer tensors."""

_CONVERTS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_UNSIGNED = "_s8_2_u8"
"""Suffix of integer weights that ONNX Runtime converted to unsigned (AVX2)."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_FUSED = 2
"""Nodes that a Conv takes in at most: an Add and an activation."""

UNKNOWN = "?"
"""The kernel of a layer that was not found again."""

_MOVING = (
    "Reshape Flatten Transpose Slice Pad Squeeze Unsqueeze Gather Split Expand Tile Identity "
    "Cast Shape ReorderInput ReorderOutput"
)
_DATA_MOVEMENT = frozenset(_MOVING.split())
"""Operators that compute nothing: not worth a report where they stay float."""


@dataclass(frozen=True)
class Kernels:
    """The kernels of a model.

    Attributes:
        layers: operator that runs each layer, by the layer's name; "?" for a layer that isn't found
            in the optimized graph.
        float_nodes: nodes that stayed float between integer ones, as `name (operator)`.
        counts: number of nodes by operator.
    """

    layers: dict[str, str]
    float_nodes: list[str]
    counts: dict[str, int]

    def integer_layers(self) -> list[str]:
        """Names of the layers that run on integer kernels."""
        return [name for name, kernel in self.layers.items() if kernel in INTEGER_KERNELS]


def read_kernels(
    model: ir.Model | bytes | str | Path, plan: Plan, nodes: list[ir.Node] | None = None
) -> Kernels:
    """The kernels that run a model.

    Args:
        model: the exported model.
        plan: the plan that it was made from.
        nodes: of the graph that another machine's ONNX Runtime optimised; None means this one's.
    """
    nodes = optimised_nodes(model) if nodes is None else nodes
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return Kernels(
        layers=_match_layers(nodes, plan.layers.values(), _aliases(model, plan)),
        float_nodes=[f"{node.name} ({node.op_type})" for node in float_nodes(nodes)],
        counts=counts,
    )


def optimised_nodes(model: ir.Model | bytes | str | Path) -> list[ir.Node]:
    """The nodes of the optimized graph, in order.

    Raises:
        OutputError: the disk is full.
    """
    with temporary_folder() as folder:
        path = folder / "optimised.onnx"
        try:
            open_session(model, optimised_path=path)
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception. Where the model opens
            # all the same, it was the file that could not be written.
            open_session(model)
            raise OutputError(
                f"the temporary folder '{folder}' has no room for the optimised graph; free some "
                "space or set TMPDIR to another folder"
            ) from error
        return list(ir.load(path).graph)


def float_nodes(nodes: list[ir.Node]) -> list[ir.Node]:
    """Nodes that compute in float between a DequantizeLinear and a QuantizeLinear.

    Nodes before the first quantized tensor and after the last one are float by plan.
    """
    after: set[ir.Node] = set()
    for node in nodes:
        writers = [v.producer() for v in node.inputs if v is not None]
        if any(w is not None and (w in after or _gives_float(w)) for w in writers):
            after.add(node)
    before: set[ir.Node] = set()
    for node in reversed(nodes):
        readers = [reader for output in node.outputs for reader in output.consumers()]
        if node.op_type not in _CONVERTS and any(
            reader in before or reader.op_type == "QuantizeLinear" for reader in readers
        ):
            before.add(node)
    return [n for n in nodes if n in after and n in before and _computes_in_float(n)]


def _gives_float(node: ir.Node) -> bool:
    """Whether a node dequantizes an activation."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.is_initializer():
        return False
    # QGemm without an output scale, and the kernels that are named for it.
    floats = node.op_type == "QGemm" and len([v for v in node.inputs if v is not None]) < 9
    return floats or node.op_type in ("DequantizeLinear", "MatMulIntegerToFloat")


def _computes_in_float(node: ir.Node) -> bool:
    if node.op_type == "Clip" and _is_integer(node.inputs[1] if len(node.inputs) > 1 else None):
        return False
    return node.op_type not in _CONVERTS | _DATA_MOVEMENT | INTEGER_KERNELS


def _is_integer(bound: ir.Value | None) -> bool:
    """Whether a constant is an integer, and so bounds an activation of less than 8 bits."""
    constant = None if bound is None else bound.const_value
    return constant is not None and constant.dtype == ir.DataType.UINT8


@dataclass(frozen=True)
class _Aliases:
    """The names by which a layer may be found in the optimized graph.

    Attributes:
        nodes: names of its node and output, and of nodes that are fused into it.
        weight: names of its weight's forms, quantized ones before the one that the layer reads.
        bias: names of its bias' forms.
    """

    nodes: set[str]
    weight: list[str]
    bias: list[str]


def _aliases(model: ir.Model | bytes | str | Path, plan: Plan) -> dict[str, _Aliases]:
    found: dict[str, _Aliases] = {}
    for node in exported_graph(model):
        name = str(node.name)
        if name in plan.layers:
            constants = [*node.inputs, None, None]
            found[name] = _Aliases(_fused(node), _forms(constants[1]), _forms(constants[2]))
    return found


def _fused(node: ir.Node) -> set[str]:
    names = {str(node.name), str(node.outputs[0].name)}
    for _ in range(MOST_FUSED):
        readers = list(node.outputs[0].consumers())
        if len(readers) != 1 or not _computes_in_float(readers[0]):
            break
        node = readers[0]
        if node.op_type in _WEIGHTED:
            break
        names |= {str(node.name), str(node.outputs[0].name)}
    return names


def _forms(value: ir.Value | None) -> list[str]:
    """Names of a constant as it is stored, as each node transforms it, and as a layer reads it.

    The optimizer may have folded the constant to any of them. Layers that share a weight may read
    it in different forms: an integer kernel reads the quantized one.
    """
    names: list[str] = []
    while value is not None:
        names.insert(0, str(value.name))
        node = value.producer()
        value = node.inputs[0] if node is not None else None
    return names


def exported_graph(model: ir.Model | bytes | str | Path) -> ir.Graph:
    """The graph of a model in memory or in a file."""
    if isinstance(model, ir.Model):
        return model.graph
    if not isinstance(model, bytes):
        return read_graph(Path(model)).graph
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(model)
        return ir.load(path).graph


def _match_layers(
    nodes: list[ir.Node], layers: Iterable[LayerSpec], aliases: Mapping[str, _Aliases]
) -> dict[str, str]:
    """The operator of each layer, found by its weight, its bias or its names."""
    by_input: dict[str, list[ir.Node]] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.name:
                by_input.setdefault(value.name, []).append(node)
    found = {}
    names = {str(node.name) for node in nodes}
    for layer in layers:
        if layer.op_type == TABLE and layer.name in names:
            found[layer.name] = TABLE
            continue
        known = aliases.get(layer.name)
        match = None if known is None else _node_of(layer, known, nodes, by_input)
        found[layer.name] = match.op_type if match is not None else UNKNOWN
    return found


def _node_of(
    layer: LayerSpec, known: _Aliases, nodes: list[ir.Node], by_input: dict[str, list[ir.Node]]
) -> ir.Node | None:
    found = _by_weight(by_input, layer, known) or _by_bias(by_input, known)
    return found or _by_name(nodes, known.nodes)


def _may_run(node: ir.Node, layer: LayerSpec) -> bool:
    """Whether the node can be the layer: an integer kernel only where its tensors are quantized.

    Layers may share a weight and be planned differently.
    """
    planned = layer.compute == "integer" or node.op_type not in INTEGER_KERNELS
    return planned and _may_be_layer(node)


def _by_weight(
    by_input: dict[str, list[ir.Node]], layer: LayerSpec, known: _Aliases
) -> ir.Node | None:
    """The node that reads the layer's weight; of several, the one with the layer's name."""
    stored = [form + end for form in known.weight for end in ("", _UNSIGNED)]
    direct = [by_input.get(form, []) for form in stored]
    # A DequantizeLinear that was not fused: the layer is the node that reads its output.
    behind = [r for found in direct for n in found for out in n.outputs for r in out.consumers()]
    for found in (*direct, behind):
        readers = [node for node in found if _may_run(node, layer)]
        named = [node for node in readers if _names(node) & {layer.name, layer.output}]
        if readers:
            return (named or readers)[0]
    return None


def _by_bias(by_input: dict[str, list[ir.Node]], known: _Aliases) -> ir.Node | None:
    """The only node that reads the layer's bias: blocked layouts rename only the weights."""
    for name in known.bias:
        readers = [n for n in by_input.get(name, []) if _may_be_layer(n)]
        if len(readers) == 1:
            return readers[0]
    return None


def _by_name(nodes: list[ir.Node], names: set[str]) -> ir.Node | None:
    """The first node with one of the names, where its constants were renamed."""
    for node in nodes:
        if _may_be_layer(node) and _names(node) & names:
            return node
    return None


def _names(node: ir.Node) -> set[str]:
    suffixes = ("_nchwc", "_nhwc")
    names = {str(node.name), *(str(output.name) for output in node.outputs)}
    return names | {name.removesuffix(s) for name in names for s in suffixes}


def _may_be_layer(node: ir.Node) -> bool:
    return _computes_in_float(node) or node.op_type in INTEGER_KERNELS
