"""Which tensors of a compressed file stand for which layers of its original."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.plan.layers import Layer, find_layers
from onnxq.plan.operators import activation_bounds, constant
from onnxq.verify.channel_factors import ChannelFactors
from onnxq.verify.noise import Noise
from onnxq.verify.opened import OpenedModel
from onnxq.verify.probe import find_tensors
from onnxq.verify.stored_weights import stored_array

LEAST_SHARE = 0.5
"""Share of the original's layers below which a file was made of another model."""


@dataclass(frozen=True)
class PairedLayer:
    """A layer of the original, found again in the compressed file.

    Attributes:
        name: the node's name.
        op_type: its operator.
        tensor: name of its output, behind the activation that is folded into it; None where
            the file has no such tensor.
        weight_noise: of the weights alone.
        factor: ``(channels,)`` by which the file rescales the channels of the output, axis 1;
            None where it doesn't.
        is_float: whether the file holds the weights as floats.
    """

    name: str
    op_type: str
    tensor: str | None
    weight_noise: Noise
    factor: np.ndarray | None
    is_float: bool


def pair_layers(teacher: ir.Model, compressed: OpenedModel, equalized: bool) -> list[PairedLayer]:
    """The layers that both models have, in the order of the graph.

    Args:
        teacher: the normalised original.
        compressed: the file that onnxq made of it.
        equalized: whether its channels were rescaled.

    Raises:
        ModelError: too few are found again, or the weights of one have another shape.
    """
    nodes = {str(node.name): node for node in compressed.model.graph}
    known = find_tensors(compressed.model.graph)
    factors = ChannelFactors(teacher) if equalized else None
    layers = find_layers(teacher.graph)[0]
    paired = []
    for layer in layers:
        stored = _stored(layer, nodes.get(str(layer.node.name)), compressed)
        if stored is not None:
            paired.append(_pair(layer, *stored, known, factors))
    # Exporters give equal names to layers of quite different models.
    if not paired or len(paired) < LEAST_SHARE * len(layers):
        raise ModelError(
            f"'{compressed.path}' has {len(paired)} of the {len(layers)} layers of the float "
            "model; give the original that it was made from."
        )
    return paired


def _stored(
    layer: Layer, node: ir.Node | None, compressed: OpenedModel
) -> tuple[ir.Node, np.ndarray] | None:
    """The layer's node in the file and the weights that it reads; None where it has none."""
    if node is None or node.op_type != layer.node.op_type:
        return None
    original, weight = constant(layer.weight), stored_array(node.inputs[1])
    assert original is not None
    if weight is None:
        return None
    if weight.shape != original.shape:
        raise ModelError(
            f"The weights of '{node.name}' have the shape {weight.shape} in "
            f"'{compressed.path}', but {original.shape} in the float model; give the original "
            "that it was made from."
        )
    return node, weight


def _pair(
    layer: Layer,
    node: ir.Node,
    weight: np.ndarray,
    known: Iterable[str],
    factors: ChannelFactors | None,
) -> PairedLayer:
    original, factor = constant(layer.weight), None
    assert original is not None
    if factors is not None:
        bias = stored_array(node.inputs[2]) if len(node.inputs) > 2 else None
        rescaled = factors.rescale(layer.node, weight, bias)
        original, factor = rescaled.weight, rescaled.factor
    noise = Noise()
    noise.add(original, weight)
    return PairedLayer(
        name=str(layer.node.name),
        op_type=layer.node.op_type,
        tensor=next((name for name in _outputs(layer.node) if name in known), None),
        weight_noise=noise,
        factor=factor,
        is_float=constant(node.inputs[1]) is not None,
    )


def _outputs(node: ir.Node) -> list[str]:
    """Names of the layer's output, that behind a Relu or a Clip from 0 first."""
    output = node.outputs[0]
    readers = [reader for reader, _ in output.uses()]
    names = [str(output.name)]
    if len(readers) == 1 and not output.is_graph_output() and activation_bounds(readers[0]):
        names.insert(0, str(readers[0].outputs[0].name))
    return names
