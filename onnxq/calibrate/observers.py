"""The observed model: a copy whose outputs are the statistics of chosen tensors.

Minimum and maximum are reduced inside the graph, exactly. For the histogram only every k-th element
leaves the session, with k a prime. No whole activation is held or copied out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import add_initializer
from onnxq.graph.facts import values_by_name

VALUES_PER_BATCH = 16384
"""About how many elements of one tensor are drawn from one batch, where its size is known."""

DEFAULT_STRIDE = 17
"""The stride where the size of a tensor is not known."""


@dataclass(frozen=True)
class Observer:
    """The names of the outputs with one tensor's statistics.

    Attributes:
        tensor: the tensor's name.
        minimum: the output with its smallest value, a scalar.
        maximum: the output with its largest value, a scalar.
        sample: the output with every k-th element, 1-D.
        channels: outputs with the minimum, the maximum and the mean of each channel and the number
            of elements; None where they are not wanted.
    """

    tensor: str
    minimum: str
    maximum: str
    sample: str
    channels: tuple[str, str, str, str] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs."""
        return (self.minimum, self.maximum, self.sample, *(self.channels or ()))


def observe(
    model: ir.Model, tensors: Sequence[str], channel_tensors: Collection[str], batch_size: int
) -> tuple[ir.Model, list[Observer]]:
    """A copy of the model whose outputs are statistics, and the names of these outputs.

    Args:
        model: not changed.
        tensors: names of float graph inputs or node outputs of the main graph, any rank.
        channel_tensors: those of them whose channels (axis 1) are wanted too.
        batch_size: samples in a batch where the model leaves the number free.

    Raises:
        ValueError: the main graph has no such tensor, or its rank has no axis 1.
    """
    model = model.clone()
    values = values_by_name(model.graph)
    for name in tensors:
        if name not in values:
            raise ValueError(f"tensor '{name}' is not in the main graph; pass a name that is")
    model.graph.outputs.clear()
    attach, wanted = _Attach(model), set(tensors)
    # The session runs the last leaf of the graph first, with all that it needs. Deepest first
    # here means that each tensor is observed once it is made, not held until the end.
    observers = {
        name: attach.observer(value, name in channel_tensors, batch_size)
        for name, value in reversed(values.items())
        if name in wanted
    }
    return model, [observers[name] for name in tensors]


class _Attach:
    """Appends observing nodes to a graph."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._axes_are_input = model.opset_imports[""] >= 18
        self._constants: dict[str, ir.Value] = {}
        firsts = [value.shape[0] for value in self._graph.inputs if value.shape]
        self._batch = frozenset(str(dim) for dim in firsts if not isinstance(dim, int))

    def observer(self, value: ir.Value, wants_channels: bool, batch_size: int) -> Observer:
        """Observes one tensor."""
        name = str(value.name)
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            to_float = {"to": int(ir.DataType.FLOAT)}
            value = self._node("Cast", [value], name, to_float, ir.DataType.FLOAT)
        minimum = self._output("ReduceMin", [value], name, {"keepdims": 0})
        maximum = self._output("ReduceMax", [value], name, {"keepdims": 0})
        sample = self._sample(value, name, stride_for(value.shape, batch_size, self._batch))
        channels = self._channels(value, name) if wants_channels else None
        return Observer(name, minimum, maximum, sample, channels)

    def _sample(self, value: ir.Value, name: str, stride: int) -> str:
        if stride == 1:
            return self._output("Reshape", [value, self._constant(-1)], name)
        flat = self._node("Reshape", [value, self._constant(-1)], name)
        start, end = self._constant(0), self._constant(2**62)
        return self._output("Slice", [flat, start, end, start, self._constant(stride)], name)

    def _channels(self, value: ir.Value, name: str) -> tuple[str, str, str, str]:
        rank = None if value.shape is None else value.shape.rank()
        if rank is None or rank < 2:
            raise ValueError(f"tensor '{name}' has the rank '{rank}', channels need 2 or more")
        axes = [axis for axis in range(rank) if axis != 1]
        attributes: dict[str, int | list[int]] = {"keepdims": 0}
        inputs = [value]
        if self._axes_are_input:
            inputs.append(self._constant(*axes))
        else:
            attributes["axes"] = axes
        low = self._output("ReduceMin", inputs, f"{name}/channels", attributes)
        high = self._output("ReduceMax", inputs, f"{name}/channels", attributes)
        # ReduceMean got its axes input in opset 18, together with the others.
        mean = self._output("ReduceMean", inputs, f"{name}/channels", attributes)
        size = self._output("Size", [value], name, dtype=ir.DataType.INT64)
        return low, high, mean, size

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, int | list[int]] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=dict(attributes or {}))
        self._graph.append(node)
        output = node.outputs[0]
        output.name = f"{name}/observed/{op_type}"
        output.type = ir.TensorType(dtype or inputs[0].dtype or ir.DataType.FLOAT)
        return output

    def _output(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, int | list[int]] | None = None,
        dtype: ir.DataType | None = None,
    ) -> str:
        output = self._node(op_type, inputs, name, attributes, dtype)
        self._graph.outputs.append(output)
        return str(output.name)

    def _constant(self, *integers: int) -> ir.Value:
        name = "observed/" + "_".join(map(str, integers))
        if name not in self._constants:
            array = np.array(integers, np.int64)
            self._constants[name] = add_initializer(self._graph, name, array)
        return self._constants[name]


def stride_for(
    shape: ir.Shape | None, batch_size: int, batch: Collection[str] = frozenset()
) -> int:
    """The stride that draws about ``VALUES_PER_BATCH`` elements of a tensor from a batch.

    1 for a small tensor, else a prime, which steps through all rows, columns and channels, since
    their numbers are seldom its multiples.

    Args:
        shape: of the tensor, where it is known.
        batch_size: size of a free first dimension.
        batch: names of the inputs' first dimensions, which a Transpose may have moved.
    """
    if shape is None:
        return DEFAULT_STRIDE
    sizes: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif axis == 0 or str(dim) in batch:
            sizes.append(batch_size)
        else:
            return DEFAULT_STRIDE
    return _prime_from(math.prod(sizes) // VALUES_PER_BATCH)


def _prime_from(least: int) -> int:
    """The smallest prime ≥ least, or 1 where least ≤ 1."""
    if least <= 1:
        return 1
    candidate = least
    while any(candidate % divisor == 0 for divisor in range(2, math.isqrt(candidate) + 1)):
        candidate += 1
    return candidate
