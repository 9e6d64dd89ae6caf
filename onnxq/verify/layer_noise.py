"""The noise of each layer's output against the original's, in one pass over samples.

Equalization scaled the channels of a file by factors that are found from its weights. Equalized
layers hold W'[o, i] = W[o, i] · a_o / a_i, where a_o is the factor of output channel o, and a_i
that of the channel that they read (`onnxq/forms/equalize.py`). The file doesn't hold the factors.
Layers are visited in the order of the data flow, so a_i is known, and least squares over the
weights of a channel give

    a_o = sum_i W'[o, i] V[o, i] / sum_i V[o, i]^2,   V[o, i] = W[o, i] / a_i

A channel without weights takes the ratio of its biases. Quantization noise of a channel as a whole
is counted in its factor: one part in n of the noise of n weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.forms.equalize import find_pairs
from onnxq.graph.facts import constant
from onnxq.graph.operators import TABLE, activation_bounds, weight_index
from onnxq.numerics.corrections import scale_input, scale_output
from onnxq.numerics.distances import Noise
from onnxq.plan.layers import Layer, find_layers
from onnxq.progress import Progress
from onnxq.runtime.dataset import Samples, first
from onnxq.runtime.session import Arrays, SessionPool
from onnxq.student.weights import (
    in_features,
    join_weight,
    read_weight,
    split_weight,
)
from onnxq.verify.opened import (
    OpenedModel,
    find_tensors,
    stored_array,
    table_rows,
    with_outputs,
)
from onnxq.verify.outputs import paired_outputs

Floats = NDArray[np.float64]

DEAD = 1e-12
"""Sum of squares, as a share of the layer's mean one, below which a channel has no weights."""


@dataclass(frozen=True)
class Rescaled:
    """A layer of the original, rescaled to the channels of the file.

    Attributes:
        weight: the original's weights, rescaled. Behind a channel that is always zero the
            original's weights are often the largest of all, and only rescaled ones can be compared.
        factor: ``(channels,)`` by which the layer's output is rescaled; None where it isn't.
    """

    weight: np.ndarray
    factor: Floats | None = None


class ChannelFactors:
    """Repeats an equalization, layer by layer in the order of the data flow.

    Args:
        teacher: the normalised float model.
    """

    def __init__(self, teacher: ir.Model) -> None:
        pairs = find_pairs(teacher)
        self._given = {pair.producer: pair for pair in pairs}
        self._taken = {pair.consumer: pair for pair in pairs}
        self._factors: dict[ir.Node, Floats] = {}

    def rescale(
        self, layer: ir.Node, weight: NDArray[np.floating], bias: NDArray[np.floating] | None
    ) -> Rescaled:
        """Rescale a layer of the original like the file's.

        Args:
            layer: the teacher's node.
            weight: the file's weights of the layer, of the same shape.
            bias: the file's bias of the layer, or None.
        """
        given, taken = self._given.get(layer), self._taken.get(layer)
        if given is None and taken is None:
            original = constant(layer.inputs[weight_index(layer.op_type)])
            assert original is not None
            return Rescaled(original)
        channels = in_features(layer) if taken is None else taken.channels
        wanted, factor = read_weight(layer, channels), None
        if taken is not None:
            wanted = scale_input(wanted, 1 / self._factors[taken.producer])
        if given is not None:
            found = split_weight(layer, weight, channels)
            factor = _factor(wanted, found, _bias_ratio(layer, bias, given.channels))
            wanted = scale_output(wanted, factor)
            self._factors[layer] = factor
        return Rescaled(join_weight(layer, wanted), factor)


def _factor(original: Floats, found: Floats, fallback: Floats) -> Floats:
    """Least squares per output channel, ``(groups * out,)``."""
    groups, out = original.shape[:2]
    rows, others = (each.reshape(groups * out, -1) for each in (original, found))
    power = np.square(rows).sum(axis=1)
    product = (rows * others).sum(axis=1)
    alive = (power > DEAD * power.mean()) & (product > 0)
    return np.where(alive, product / np.where(alive, power, 1.0), fallback)


def _bias_ratio(layer: ir.Node, bias: np.ndarray | None, channels: int) -> Floats:
    """The file's bias over the original's, ``(channels,)``; 1 where that is 0 or negative."""
    original = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if original is None or bias is None:
        return np.ones(channels)
    before, after = (
        np.broadcast_to(each.astype(np.float64).reshape(-1), (channels,))
        for each in (original, bias)
    )
    known = before * after > 0
    return np.where(known, after / np.where(known, before, 1.0), 1.0)


LEAST_SHARE = 0.5
"""Least share of the original's layers to find in a file that was made from it."""


@dataclass(frozen=True)
class PairedLayer:
    """A layer of the original and its counterpart in the compressed file.

    Attributes:
        name: the node's name.
        op_type: its operator.
        tensor: name of its output, behind the activation that is folded into it; None where the
            file has no such tensor.
        weight_noise: of the weights alone.
        factor: ``(channels,)`` by which the file rescales the channels of the output, axis 1; None
            where it doesn't.
        is_float: whether the file holds the weights as floats.
    """

    name: str
    op_type: str
    tensor: str | None
    weight_noise: Noise
    factor: np.ndarray | None
    is_float: bool


def pair_layers(teacher: ir.Model, compressed: OpenedModel, equalized: bool) -> list[PairedLayer]:
    """The layers that both models have, in graph order.

    Args:
        teacher: the normalised original.
        compressed: the file that onnxq wrote of it.
        equalized: whether its channels were rescaled.

    Raises:
        ModelError: too few layers are found, or the weights of one have another shape.
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
    """The layer's node in the file and the weights that it reads; None where there is none."""
    if node is None or node.op_type != layer.node.op_type:
        return None
    original, weight = constant(layer.weight), _stored_array(node)
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


def _stored_array(node: ir.Node) -> np.ndarray | None:
    """The floats of a layer's weight in the file; None where it is not constant."""
    stored = stored_array(node.inputs[weight_index(node.op_type)])
    if stored is None or node.op_type != TABLE:
        return stored
    return table_rows(node, np.arange(len(stored)))


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
    stored = constant(node.inputs[weight_index(node.op_type)])
    noise = Noise()
    noise.add(original, weight)
    return PairedLayer(
        name=str(layer.node.name),
        op_type=layer.node.op_type,
        tensor=next((name for name in _outputs(layer.node) if name in known), None),
        weight_noise=noise,
        factor=factor,
        is_float=stored is not None and stored.dtype.kind == "f",
    )


def _outputs(node: ir.Node) -> list[str]:
    """Names of the layer's output; first the one behind a Relu or a Clip from 0."""
    output = node.outputs[0]
    readers = [reader for reader, _ in output.uses()]
    names = [str(output.name)]
    if len(readers) == 1 and not output.is_graph_output() and activation_bounds(readers[0]):
        names.insert(0, str(readers[0].outputs[0].name))
    return names


BATCH_SIZE = 16
"""Samples per run at most."""

BATCH_BYTES = 2**26
"""Bytes that the tensors of one run may have: those of a few runs are held at once."""


class LayerNoise:
    """Runs both models side by side and accumulates the noise of each tensor.

    Args:
        teacher: the normalised original.
        student: the compressed file.
        layers: the layers to compare; those without a tensor are left out.
        outputs: names of the graph outputs, compared too.
    """

    def __init__(
        self,
        teacher: ir.Model,
        student: ir.Model,
        layers: Sequence[PairedLayer],
        outputs: Sequence[str],
    ) -> None:
        self._factors = {each.tensor: each.factor for each in layers if each.tensor is not None}
        self._tensors = list(dict.fromkeys([*self._factors, *outputs]))
        self._noises: dict[str, Noise] = {}
        self._teacher, self._student = (
            SessionPool(with_outputs(model, self._tensors), self._tensors)
            for model in (teacher, student)
        )

    def measure(self, samples: Samples, progress: Progress) -> None:
        """Compare all tensors on all samples; each sample is read once."""
        progress.start("compare", samples.count)
        size = samples.batch or self._batch_size(first(samples))
        pairs = paired_outputs(self._teacher, self._student, samples, size)
        for done, (expected, found) in enumerate(pairs, start=1):
            for name in self._tensors:
                self._add(name, expected[name], found[name])
            progress.at(min(done * size, samples.count))
        progress.finish()

    def sqnr_db(self, tensor: str | None) -> float | None:
        """The SQNR of a tensor, decibels; None where the models have no such tensor to compare."""
        noise = self._noises.get(tensor or "")
        return None if noise is None else noise.sqnr_db()

    def _batch_size(self, feeds: Arrays) -> int:
        """How many samples such as this one are run at once, whatever the machine."""
        arrays = self._teacher.run(feeds).values()
        needed = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
        return max(1, min(BATCH_SIZE, BATCH_BYTES // max(needed, 1)))

    def _add(self, name: str, y: np.ndarray, y_hat: np.ndarray) -> None:
        # Sequences and maps of ai.onnx.ml models are no arrays.
        if not isinstance(y, np.ndarray) or y.dtype.kind != "f" or y.shape != y_hat.shape:
            return
        factor = self._factors.get(name)
        if factor is not None:
            y_hat = y_hat / factor.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 2))
        self._noises.setdefault(name, Noise()).add(y, y_hat)
