"""Small networks as ONNX graphs, once for training and once for inference.

In training every parameter is a graph input and BatchNormalization is composed from
reductions over the batch, since the engine has no gradient for its training mode. For
inference parameters are initializers and BatchNormalization is one node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

OPSET, IR_VERSION = 13, 8
EPSILON = 1e-5
FLOAT = ir.DataType.FLOAT


class Network:
    """A graph under construction, with its parameters by name.

    Args:
        parameters: values by name; the ones that are missing are drawn and added.
        statistics: mean and variance by BatchNormalization; None builds for training.
        seed: of the generator that draws parameters.
    """

    def __init__(
        self,
        parameters: dict[str, np.ndarray],
        statistics: dict[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        self.parameters = parameters
        self.statistics = statistics
        self.batch_outputs: list[ir.Value] = []
        self._random = np.random.default_rng(seed)
        self._graph_inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    @property
    def training(self) -> bool:
        """Whether the graph is built for training."""
        return self.statistics is None

    def input(self, name: str, shape: Sequence[int | str]) -> ir.Value:
        """A graph input that is fed with data."""
        value = ir.val(name, FLOAT, shape)
        self._graph_inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, name: str, **attributes: object) -> ir.Value:
        """Add a node; its output is named after it."""
        node = ir.node(op_type, inputs, attributes, name=name)  # type: ignore[arg-type]
        node.outputs[0].name = f"{name}.out"
        self._nodes.append(node)
        return node.outputs[0]

    def conv(
        self,
        x: ir.Value,
        name: str,
        shape: tuple[int, int, int, int],
        stride: int = 1,
        *,
        bias: bool = False,
    ) -> ir.Value:
        """A convolution; weights (out, in / group, k, k); depth-wise if in = 1."""
        filters, depth, size, _ = shape
        inputs = [x, self._parameter(f"{name}.weight", shape, depth * size * size)]
        if bias:
            inputs.append(self._parameter(f"{name}.bias", (filters,), None, 0.0))
        group = filters if depth == 1 and size > 1 and not name.startswith("stem") else 1
        return self.op(
            "Conv",
            *inputs,
            name=name,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
            group=group,
        )

    def batch_norm(self, x: ir.Value, name: str, channels: int, start: float = 1.0) -> ir.Value:
        """Normalise each channel; gamma begins at `start` and beta at 0."""
        if self.statistics is not None:
            gamma = self._constant(f"{name}.gamma", self.parameters[f"{name}.gamma"].reshape(-1))
            beta = self._constant(f"{name}.beta", self.parameters[f"{name}.beta"].reshape(-1))
            mean = self._constant(f"{name}.mean", self.statistics[f"{name}.mean"].reshape(-1))
            variance = self._constant(f"{name}.var", self.statistics[f"{name}.var"].reshape(-1))
            inputs = (x, gamma, beta, mean, variance)
            return self.op("BatchNormalization", *inputs, name=name, epsilon=EPSILON)
        gamma = self._parameter(f"{name}.gamma", (1, channels, 1, 1), None, start)
        beta = self._parameter(f"{name}.beta", (1, channels, 1, 1), None, 0.0)
        axes = {"axes": [0, 2, 3], "keepdims": 1}
        mean = self.op("ReduceMean", x, name=f"{name}.mean", **axes)
        centred = self.op("Sub", x, mean, name=f"{name}.centred")
        square = self.op("Mul", centred, centred, name=f"{name}.square")
        variance = self.op("ReduceMean", square, name=f"{name}.var", **axes)
        self.batch_outputs += [mean, variance]
        epsilon = self._constant("epsilon", np.float32(EPSILON))
        shifted = self.op("Add", variance, epsilon, name=f"{name}.shifted")
        deviation = self.op("Sqrt", shifted, name=f"{name}.deviation")
        normal = self.op("Div", centred, deviation, name=f"{name}.normal")
        scaled = self.op("Mul", normal, gamma, name=f"{name}.scaled")
        return self.op("Add", scaled, beta, name=name)

    def relu6(self, x: ir.Value, name: str) -> ir.Value:
        """Clip to 0 ... 6."""
        low, high = (self._constant(f"clip.{v}", np.float32(v)) for v in (0, 6))
        return self.op("Clip", x, low, high, name=name)

    def gemm(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """A fully connected layer; weights (out, in), bias from 0."""
        weights = self._parameter(f"{name}.weight", (outputs, inputs), inputs)
        bias = self._parameter(f"{name}.bias", (outputs,), None, 0.0)
        return self.op("Gemm", x, weights, bias, name=name, transB=1)

    def cross_entropy(self, logits: ir.Value, batch: int) -> ir.Value:
        """Sum of the cross entropy to one-hot targets, over ``batch``."""
        targets = self.input("targets", ["N", 10])
        logs = self.op("LogSoftmax", logits, name="log_softmax", axis=1)
        product = self.op("Mul", logs, targets, name="picked")
        total = self.op("ReduceSum", product, name="total", keepdims=0)
        scale = self._constant("loss.scale", np.float32(-1 / batch))
        loss = self.op("Mul", total, scale, name="loss")
        loss.name, loss.type, loss.shape = "loss", ir.TensorType(FLOAT), ir.Shape([])
        return loss

    def model(self, outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """The finished model."""
        for value in outputs:
            value.type = ir.TensorType(FLOAT)
        graph = ir.Graph(
            self._graph_inputs,
            outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="onnxq")

    def _parameter(
        self, name: str, shape: tuple[int, ...], fan_in: int | None, value: float = 0.0
    ) -> ir.Value:
        """A trained value: normal with variance 2 / fan_in (He et al. 2015), or a constant."""
        if name not in self.parameters:
            drawn = self._random.normal(0, np.sqrt(2 / fan_in), shape) if fan_in else value
            self.parameters[name] = np.broadcast_to(drawn, shape).astype(np.float32)
        if self.training:
            return self.input(name, shape)
        return self._constant(name, self.parameters[name])

    def _constant(self, name: str, value: np.ndarray | np.float32) -> ir.Value:
        if name not in self._initializers:
            tensor = ir.tensor(np.asarray(value, np.float32), name=name)
            self._initializers[name] = ir.val(name, const_value=tensor)
        return self._initializers[name]
