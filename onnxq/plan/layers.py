"""The layers of a graph, those with settings of their own, and what is no layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.errors import RecipeError
from onnxq.graph.facts import computed_from_constants, constant, rank
from onnxq.graph.operators import (
    FUSED_OPERATORS,
    RECURRENT_OPERATORS,
    TABLE,
    WEIGHT_OPERATORS,
    weight_index,
)
from onnxq.graph.products import einsum_refusal, left_refusal
from onnxq.graph.scaled_weight import scaled_weight
from onnxq.options.recipe import Recipe
from onnxq.plan.spec import Compute, LayerSpec, Plan

_OTHER_OPERATORS = ("DeformConv",)
"""Operators with weights of a layer that ONNX Runtime computes in float alone."""


def has_weights_left(node: ir.Node) -> bool:
    """Whether a product has its weights as the first operand, which no layer has."""
    return constant(node.inputs[0]) is not None and constant(node.inputs[1]) is None


def has_weights(node: ir.Node) -> bool:
    """Whether an input is constant, or computed from constants alone as in a sub-graph."""
    return any(_is_weight(value) or computed_from_constants(value) for value in node.inputs)


def refusal_of_weights(node: ir.Node) -> str | None:
    """Why a node that is no layer can't have integer weights; None where it has no weights.

    Normalisation rewrites what it can to a layer's form. For the rest, this is the reason why it
    could not.
    """
    if node.op_type in FUSED_OPERATORS:
        return (
            f"{node.op_type} is a form of ONNX Runtime's optimizer; give the model as it was "
            "exported"
        )
    if node.domain:
        return _outside(node)
    if node.op_type in RECURRENT_OPERATORS:
        return f"{node.op_type} has no integer kernel with a learned range"
    if not any(_is_weight(value) for value in node.inputs):
        return None
    if node.op_type == "Einsum":
        return einsum_refusal(node)
    if node.op_type in ("MatMul", "Gemm"):
        return left_refusal(node)
    if node.op_type in _OTHER_OPERATORS:
        return f"{node.op_type} has no integer kernel"
    return None


def _outside(node: ir.Node) -> str | None:
    matrices = [value for value in node.inputs if _is_weight(value) and (rank(value) or 0) > 1]
    return f"{node.domain}::{node.op_type} has no integer kernel" if matrices else None


def _is_weight(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.dtype.kind == "f" and array.size > 1


SMALLEST_RANK = 2

COMPUTED = "its weights are computed from constants, which take fewer bytes than they would"

SMALLEST_TABLE = 1024
"""Elements of a table from which its lookup is a layer."""


@dataclass(frozen=True)
class Layer:
    """A node with constant weights, as found in the graph.

    Attributes:
        node: the node.
        data: its input; the indices of a Gather.
        weight: the initializer; several layers may read one.
        bias: the bias, or None.
        axis: the weight's axis of output channels; the rows of a table.
        factor: a constant of the layer's own by which its weight is multiplied, or None.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    axis: int
    factor: ir.Value | None = None

    def array(self) -> np.ndarray:
        """The weight as the layer reads it."""
        weight, factor = constant(self.weight), constant(self.factor)
        assert weight is not None
        return weight if factor is None else np.asarray(weight * factor, weight.dtype)


def spec_of(layer: Layer, axis: int | None, num_bits: int, compute: Compute) -> LayerSpec:
    """The spec of a layer; all further fields have their defaults."""
    array = constant(layer.weight)
    assert array is not None
    return LayerSpec(
        name=str(layer.node.name),
        op_type=layer.node.op_type,
        weight=str(layer.weight.name),
        bias=None if layer.bias is None else layer.bias.name,
        input=str(layer.data.name),
        output=str(layer.node.outputs[0].name),
        axis=axis,
        channel_axis=layer.axis,
        num_bits=num_bits,
        compute=compute,
        reason="",
        parameters=array.size,
        channels=array.shape[layer.axis],
        factor=None if layer.factor is None else str(layer.factor.name),
        rows=array.size // array.shape[-1] if layer.node.op_type == TABLE else 1,
    )


def layer_of(node: ir.Node) -> Layer | str:
    """The layer of a weight operator, or the reason why it can't be quantized."""
    index = weight_index(node.op_type)
    data, weight = node.inputs[1 - index], node.inputs[index]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scaled, factor = scaled_weight(weight), None
    if scaled is not None:
        weight, factor = scaled.weight, scaled.factor
    array = constant(weight)
    if data is None or weight is None or array is None:
        return COMPUTED if computed_from_constants(weight) else "its weights are not constant"
    if constant(data) is not None:
        return "its input is constant"
    if array.dtype.name != "float32":
        return f"its weights are {array.dtype.name}, expected float32"
    if array.ndim < SMALLEST_RANK:
        return f"its weights have {array.ndim} dimension"
    if not array.size:
        return "its weights are empty"
    axis = weight_axis(node, array.ndim)
    # Weights of a ConvTranspose hold the output channels of one group, depthwise ones of all.
    grouped = node.op_type == "ConvTranspose" and axis == 1
    groups = node.attributes.get_int("group", 1) if grouped else 1
    reason = _unsupported_form(node, bias, array.shape[axis] * groups)
    if factor is not None and not _along(factor, axis):
        reason = reason or "its weights are computed from constants, and are no matrix by channel"
    return reason or Layer(node, data, weight, bias, axis, factor)


def _along(factor: ir.Value, axis: int) -> bool:
    """Whether a factor of the weight's rank, or a scalar, is one number per channel."""
    array = constant(factor)
    assert array is not None
    return all(size == 1 for i, size in enumerate(array.shape) if i != axis)


def is_table(node: ir.Node) -> bool:
    """Whether the node looks up rows in a constant float table that is worth quantizing."""
    if node.op_type != TABLE or node.domain or node.attributes.get_int("axis", 0) != 0:
        return False
    array = constant(node.inputs[0])
    if array is None or array.dtype != np.float32 or array.ndim < SMALLEST_RANK:
        return False
    return array.size >= SMALLEST_TABLE and constant(node.inputs[1]) is None


def _is_per_channel(bias: ir.Value, channels: int) -> bool:
    """Whether the bias is (channels,), or broadcasts to it: (1, channels) or () of a Gemm."""
    array = constant(bias)
    return (
        array is not None
        and all(size == 1 for size in array.shape[:-1])
        and (array.size in (1, channels))
    )


def _unsupported_form(node: ir.Node, bias: ir.Value | None, channels: int) -> str:
    if bias is not None and constant(bias) is None:
        return "its bias is not constant"
    if bias is not None and not _is_per_channel(bias, channels):
        return "its bias is not one number per output channel"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding depends on the size of its input (auto_pad)"
    if node.op_type != "Gemm":
        return ""
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its alpha or beta is not 1"
    if node.attributes.get_int("transA", 0):
        return "it transposes its input"
    return ""


def weight_axis(node: ir.Node, rank: int) -> int:
    """The axis of the output channels of a layer's weights.

    Conv (out, in/group, ...): 0. ConvTranspose (in, out/group, ...): 1, and 0 where groups
    have one output channel each. Gemm (in, out): 1, with transB (out, in): 0. MatMul
    (..., in, out): the last. Gather (rows, width): 0.
    """
    if node.op_type in ("Conv", TABLE):
        return 0
    if node.op_type == "ConvTranspose":
        weight = constant(node.inputs[1])
        depthwise = weight is not None and weight.shape[1] == 1
        return 0 if depthwise and node.attributes.get_int("group", 1) != 1 else 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1


def find_layers(graph: ir.Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers of the main graph in order, and the reasons of the other nodes with weights."""
    layers: list[Layer] = []
    refused: dict[str, str] = {}
    for node in graph:
        if not node.name:
            continue
        own = node.op_type in WEIGHT_OPERATORS and not node.domain and not has_weights_left(node)
        if own or is_table(node):
            found = layer_of(node)
            if isinstance(found, Layer):
                layers.append(found)
            elif found != "its weights are not constant" or node.op_type != "MatMul":
                refused[node.name] = found
        elif (reason := refusal_of_weights(node)) is not None:
            refused[node.name] = reason
    for node in _nested_nodes(graph):
        if node.op_type in (*WEIGHT_OPERATORS, *RECURRENT_OPERATORS) and has_weights(node):
            refused[node.name or node.op_type] = "it is inside a sub-graph (If, Loop or Scan)"
    return layers, refused


def _nested_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for subgraph in graph.subgraphs():
        yield from subgraph


EXCLUDED = "it is excluded by the recipe"
RETRAINED = f"{EXCLUDED}; retrained"
FLOAT_BITS = 32


def retrained_layers(excluded: Sequence[Layer], quantized: Sequence[Layer]) -> dict[str, LayerSpec]:
    """Specs of the layers to retrain: float layers whose weight no quantized layer shares."""
    taken = {layer.weight.name for layer in quantized}
    return {
        str(layer.node.name): _spec(layer) for layer in excluded if layer.weight.name not in taken
    }


def _spec(layer: Layer) -> LayerSpec:
    return replace(spec_of(layer, None, FLOAT_BITS, "float"), reason=RETRAINED)


def check_float_layers(plan: Plan, recipe: Recipe) -> None:
    """Raise RecipeError where float layers are to be retrained, but none or all are float.

    A search chooses the layers later.
    """
    if "float-layers" not in recipe.learn or recipe.searches:
        return
    if not plan.float_layers:
        raise RecipeError(
            "The option 'learn' = 'float-layers' trains the layers left in float, and there are "
            "none; name some with --exclude, or with 'keep_float' in 'layers' of the recipe."
        )
    if not plan.layers:
        raise RecipeError(
            "The option 'learn' = 'float-layers' retrains around quantized layers, and every layer "
            "is left in float; name fewer with --exclude."
        )


WIDE_ENOUGH = 6
"""So many bits serve the first and the last layer too, where the recipe says nothing."""

WIDE = 8
"""Bits that they get otherwise."""


def first_and_last(layers: Sequence[Layer]) -> frozenset[ir.Node]:
    """The nodes of the first and last layers in graph order, whether float or not.

    A table is neither: its lookup is no product.
    """
    multiply = [layer for layer in layers if layer.node.op_type != TABLE]
    return frozenset(layer.node for layer in (*multiply[:1], *multiply[-1:]))


def for_first_and_last(recipe: Recipe) -> Recipe:
    """The recipe for the first and last layers, with their bits for weights and inputs.

    Settings of single layers take precedence.
    """
    stated = recipe.first_last_bits
    weight_bits = _wide(recipe.weight_bits) if stated is None else stated
    bits = recipe.activation_bits
    if bits is not None:
        bits = _wide(bits) if stated is None else max(bits, stated)
    return replace(recipe, weight_bits=weight_bits, activation_bits=bits)


def _wide(num_bits: int) -> int:
    return num_bits if num_bits >= WIDE_ENOUGH else WIDE
