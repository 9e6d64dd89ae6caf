"""A writer of ONNX graphs that knows what the operators look like in each opset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STYLES = ("plain", "exporter", "numbers", "unicode", "spaces", "colon", "long")
"""How tensors are named."""

Dims = list[int | str | None]


class GraphWriter:
    """Adds nodes to a graph; the constants and the names vary by the generator of numbers.

    Args:
        rng: of every choice.
        opset: of ONNX's own operators.
        batch: the first dimension of inputs: a number, a name, or None for a nameless one.
    """

    def __init__(self, rng: np.random.Generator, opset: int, batch: int | str | None) -> None:
        self.rng, self.opset, self.batch = rng, opset, batch
        self.style = str(rng.choice(STYLES))
        self.node_names = str(rng.choice(["as tensors", "none"], p=[0.8, 0.2]))
        self.inline = float(rng.choice([0.0, 0.3]))
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.takes: dict[str, tuple[tuple[int, ...], int | None]] = {}
        """Of each input the shape of a sample, and the number of tokens where it is indices."""

    def name(self, hint: str) -> str:
        """A name that nothing else has."""
        count = len(self.nodes) + len(self.initializers) + len(self.inputs)
        return {
            "plain": f"{hint}{count}",
            "exporter": f"/body/layer.{count}/{hint}_output_0",
            "numbers": str(1000 + count),
            "unicode": f"слой.{count}.α·{hint}",
            "spaces": f"{hint} number {count}",
            "colon": f"scope/{hint}_{count}:0",
            "long": f"{hint}{count}" + "_of_a_model" * 12,
        }[self.style]

    def input(self, shape: Sequence[int], tokens: int | None = None) -> str:
        """An input of the batch's samples; `tokens` makes it indices into a table of so many."""
        name = self.name("input")
        kind = TensorProto.FLOAT if tokens is None else TensorProto.INT64
        dims: Dims = [self.batch, *shape]
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))
        self.takes[name] = (tuple(shape), tokens)
        return name

    def output(self, name: str, rank: int) -> None:
        """Make a tensor an output, whose size is left open."""
        dims: Dims = [self.batch, *([None] * (rank - 1))]
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """An initializer, or the output of a Constant node."""
        name = self.name(hint)
        tensor = numpy_helper.from_array(array, name)
        if self.rng.random() < self.inline:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *shape: int, fan_in: int | None = None) -> str:
        """Random weights, scaled so that the tensors neither vanish nor explode."""
        fan_in = fan_in or int(np.prod(shape[1:])) or 1
        values = self.rng.normal(0, 1.3 / np.sqrt(fan_in), shape)
        return self.constant(values.astype(np.float32), "weight")

    def floats(self, *shape: int, low: float = -0.2, high: float = 0.2) -> str:
        """Uniform values: biases, scales."""
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32), "values")

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64), "sizes")

    def scalar(self, value: float) -> str:
        """A float without dimensions, or as some exporters write it with one."""
        array = np.array(value, np.float32)
        return self.constant(array[None] if self.rng.random() < 0.1 else array, "scalar")

    def node(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        """A node with one output."""
        return self.nodes_outputs(op, inputs, 1, **attributes)[0]

    def nodes_outputs(
        self, op: str, inputs: Sequence[str], count: int, **attributes: object
    ) -> list[str]:
        """A node with several outputs."""
        base = self.name(op)
        outs = [base, *(f"{base}.{i}" for i in range(1, count))]
        title = {"as tensors": base, "none": ""}[self.node_names]
        self.nodes.append(helper.make_node(op, list(inputs), outs, name=title, **attributes))
        return outs

    def mean(self, x: str, axes: Sequence[int], keep: bool) -> str:
        """The mean over axes, which are an attribute before opset 18."""
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.integers(*axes)], keepdims=int(keep))
        return self.node("ReduceMean", [x], axes=list(axes), keepdims=int(keep))

    def squeeze(self, x: str, axis: int) -> str:
        """Without an axis of length 1; it is an attribute before opset 13."""
        if self.opset >= 13:
            return self.node("Squeeze", [x, self.integers(axis)])
        return self.node("Squeeze", [x], axes=[axis])

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Parts along an axis; their lengths are an attribute before opset 13."""
        if self.opset >= 13:
            return self.nodes_outputs("Split", [x, self.integers(*sizes)], len(sizes), axis=axis)
        return self.nodes_outputs("Split", [x], len(sizes), axis=axis, split=list(sizes))

    def layer_norm(self, x: str, width: int) -> str:
        """LayerNormalization, in parts before opset 17."""
        scale, shift = self.floats(width, low=0.7, high=1.3), self.floats(width)
        if self.opset >= 17 and self.rng.random() < 0.7:
            return self.node("LayerNormalization", [x, scale, shift], axis=-1)
        centred = self.node("Sub", [x, self.mean(x, [-1], True)])
        square = self.node("Mul", [centred, centred])
        variance = self.node("Add", [self.mean(square, [-1], True), self.scalar(1e-5)])
        normed = self.node("Div", [centred, self.node("Sqrt", [variance])])
        return self.node("Add", [self.node("Mul", [normed, scale]), shift])

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self.nodes, "fuzz", self.inputs, self.outputs, initializer=self.initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 10 if self.opset == 21 else int(self.rng.integers(7, 10))
        if model.ir_version < 4 or self.rng.random() < 0.1:
            self._list_initializers(model.graph)
        return model

    def _list_initializers(self, graph: onnx.GraphProto) -> None:
        """Weights that a caller may replace are inputs as well."""
        for tensor in graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
