"""The observed model: a copy whose outputs are the statistics of chosen tensors.

Minimum and maximum are reduced inside the graph, exactly. For the histogram only every k-th element
leaves the session, with k a prime. No whole activation is held or copied out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.graph.editor import add_initializer
from onnxq.graph.facts import values_by_name
from onnxq.graph.operators import never_negative

FLOAT, MATRIX_RANK = ir.DataType.FLOAT, 2

VALUES_PER_BATCH = 16384
"""About how many elements of one tensor are drawn from one batch, where its size is known."""

DEFAULT_STRIDE = 17
"""The stride where the size of a tensor is not known."""


@dataclass(frozen=True)
class Observer:
    """The names of the outputs with one tensor's statistics.

    Attributes:
        tensor: the tensor's name.
        maximum: the output with its largest values: of all, or of each channel of each sample;
            "" where its mean alone is wanted.
        minimum: likewise; "" for a tensor that is never negative.
        sample: the output with every k-th element, 1-D.
        stride: k.
        mean: the output with the mean of each channel of each sample; "" where not wanted.
        shape: the output with the tensor's shape; "" where no range of channels is wanted.
        slope: of the LeakyRelu whose output was observed in the tensor's place; 1 where the tensor
            itself was.
    """

    tensor: str
    maximum: str = ""
    minimum: str = ""
    sample: str = ""
    stride: int = 1
    mean: str = ""
    shape: str = ""
    slope: float = 1.0

    @property
    def outputs(self) -> list[str]:
        """The names of all outputs."""
        return list(filter(None, (self.maximum, self.minimum, self.sample, self.mean, self.shape)))


def observe(
    model: ir.Model,
    tensors: Collection[str],
    channels: Collection[str],
    means: Collection[str],
    batch_size: int,
) -> tuple[ir.Model, list[Observer]]:
    """A copy of the model whose outputs are statistics, and the names of these outputs.

    Args:
        model: not changed.
        tensors: names of float graph inputs or node outputs of the main graph, any rank.
        channels: names of those whose channels (axis 1) are wanted too.
        means: names of those of whose channels the mean alone is wanted.
        batch_size: samples in a batch where the model leaves the number free.

    Raises:
        ValueError: the main graph has no such tensor, or its rank has no axis 1.
    """
    model = model.clone()
    values = values_by_name(model.graph)
    wanted = list(dict.fromkeys([*tensors, *channels, *means]))
    for name in wanted:
        if name not in values:
            raise ValueError(f"tensor '{name}' is not in the main graph; pass a name that is")
    sources = {
        name: (values[name], 1.0) if name in means else _source(values[name])
        for name in {*tensors, *channels}
    }
    by_channel = {sources[name][0].name for name in channels}
    whole = {value.name for value, _ in sources.values()}
    model.graph.outputs.clear()
    attach = _Attach(model, batch_size)
    # The session runs the last leaf of the graph first, with all that it needs. Deepest first
    # here means that each tensor is observed once it is made, not held until the end.
    found = {
        name: attach.observer(value, name in by_channel, name in means)
        if name in whole
        else Observer(name, mean=attach.mean(value))
        for name, value in reversed(values.items())
        if name in whole or name in means
    }
    return model, [_named(name, found, sources.get(name)) for name in wanted]


def _source(value: ir.Value) -> tuple[ir.Value, float]:
    """The value to observe, and the slope of the LeakyRelu that it is the output of.

    A tensor that LeakyRelu alone reads is observed behind it: the session then keeps both in one
    kernel. What was before follows from what is behind, since no two values become one.
    """
    users = value.uses()
    node = next(iter(users))[0] if len(users) == 1 and not value.is_graph_output() else None
    if node is not None and node.op_type == "LeakyRelu" and node.graph is value.graph:
        slope = node.attributes.get_float("alpha", 0.01)
        if slope > 0:
            return node.outputs[0], slope
    return value, 1.0


def _named(
    name: str, found: Mapping[str, Observer], source: tuple[ir.Value, float] | None
) -> Observer:
    if source is None or source[0].name == name:
        return found[name]
    # The mean is the only statistic that does not follow.
    return replace(found[str(source[0].name)], tensor=name, slope=source[1], mean="")


class _Attach:
    """Appends observing nodes to a graph."""

    def __init__(self, model: ir.Model, batch_size: int) -> None:
        self._graph = model.graph
        self._batch_size = batch_size
        self._axes_are_input = model.opset_imports[""] >= 18
        self._constants: dict[str, ir.Value] = {}
        firsts = [value.shape[0] for value in self._graph.inputs if value.shape]
        self._batch = frozenset(str(dim) for dim in firsts if not isinstance(dim, int))

    def observer(self, value: ir.Value, by_channel: bool, mean: bool) -> Observer:
        """Observes one tensor, with the ranges and means or the means of its channels."""
        name, positive = str(value.name), never_negative(value)
        if value.dtype not in (FLOAT, ir.DataType.DOUBLE):
            value = self._as_float(value, name)
        stride = stride_for(value.shape, self._batch_size, self._batch)
        sample = self._sample(value, name, stride)
        means = self.mean(value, pool=False) if mean else ""
        if not by_channel:
            minimum = "" if positive else self._output("ReduceMin", [value], name, {"keepdims": 0})
            maximum = self._output("ReduceMax", [value], name, {"keepdims": 0})
            return Observer(name, maximum, minimum, sample, stride, means)
        value = value if value.dtype == FLOAT else self._as_float(value, name)
        maximum = self._by_channel("Max", value, name)
        minimum = "" if positive else self._by_channel("Min", value, name)
        shape = self._output("Shape", [value], name, dtype=ir.DataType.INT64)
        return Observer(name, maximum, minimum, sample, stride, means, shape)

    def mean(self, value: ir.Value, *, pool: bool = True) -> str:
        """The output with the mean of each channel.

        Pooling keeps the blocked layout of convolutions. Where other statistics need the plain
        layout, reducing that is faster.
        """
        name = str(value.name)
        value = value if value.dtype == FLOAT else self._as_float(value, name)
        if pool and value.shape is not None and value.shape.rank() > MATRIX_RANK:
            return self._output("GlobalAveragePool", [value], f"{name}/channels")
        return self._by_channel("Mean", value, name)

    def _as_float(self, value: ir.Value, name: str) -> ir.Value:
        to_float = {"to": int(FLOAT)}
        return self._node("Cast", [value], name, to_float, FLOAT)

    def _by_channel(self, what: str, value: ir.Value, name: str) -> str:
        """The output with a statistic of each channel; of each sample, where more axes follow."""
        rank = None if value.shape is None else value.shape.rank()
        if rank is None or rank < MATRIX_RANK:
            raise ValueError(f"tensor '{name}' has the rank '{rank}', channels need 2 or more")
        axes = list(range(MATRIX_RANK, rank)) or [0]
        attributes: dict[str, int | list[int]] = {"keepdims": 0}
        inputs = [value]
        # ReduceMean got its axes input in opset 18, together with the others.
        if self._axes_are_input:
            inputs.append(self._constant(*axes))
        else:
            attributes["axes"] = axes
        return self._output(f"Reduce{what}", inputs, f"{name}/channels", attributes)

    def _sample(self, value: ir.Value, name: str, stride: int) -> str:
        if stride == 1:
            return self._output("Reshape", [value, self._constant(-1)], name)
        flat = self._node("Reshape", [value, self._constant(-1)], name)
        start, end = self._constant(0), self._constant(2**62)
        return self._output("Slice", [flat, start, end, start, self._constant(stride)], name)

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
        output.type = ir.TensorType(dtype or inputs[0].dtype or FLOAT)
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
