"""A float model as a student.

Its trained constants, two graphs, BatchNormalization statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.editor import add_initializer, free_initializer
from onnxq.graph.facts import constant, input_at, is_op, producer, values_by_name
from onnxq.normalise.affine import batch_norm_refusal
from onnxq.runtime.dataset import Dataset, Mapped, run_by
from onnxq.runtime.session import Arrays, expose
from onnxq.synthesise.parts import Parts, he_normal, training_norm

WEIGHT, BIAS, SCALE = "weight", "bias", "scale"

INPUTS: Mapping[str, Mapping[int, str]] = {
    "Conv": {1: WEIGHT, 2: BIAS},
    "ConvTranspose": {1: WEIGHT, 2: BIAS},
    "Gemm": {0: WEIGHT, 1: WEIGHT, 2: BIAS},
    "MatMul": {0: WEIGHT, 1: WEIGHT},
    "BatchNormalization": {1: SCALE, 2: BIAS},
    "InstanceNormalization": {1: SCALE, 2: BIAS},
    "LayerNormalization": {1: SCALE, 2: BIAS},
}
"""Inputs of a node that are trained where they are constant, and what they are."""


@dataclass(frozen=True)
class Parameter:
    """A trained constant.

    Attributes:
        kind: weight, bias or scale.
        shape: of the array.
        fan_in: of a weight, the number of inputs of one output.
    """

    kind: str
    shape: tuple[int, ...]
    fan_in: int = 1

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """An initial value, float32: He et al. 2015 for a weight, 1 for a scale, 0 for a bias."""
        if self.kind == WEIGHT:
            return he_normal(self.shape, self.fan_in, rng)
        return np.full(self.shape, float(self.kind == SCALE), np.float32)


def find_parameters(model: ir.Model) -> dict[str, Parameter]:
    """The trained constants by the name of the initializer; shared ones once."""
    found: dict[str, Parameter] = {}
    for node in model.graph:
        for index, kind in trained_inputs(node):
            value = node.inputs[index]
            array = constant(value)
            assert value is not None and array is not None
            shape = tuple(array.shape)
            fan_in = _fan_in(node, index, shape) if kind == WEIGHT else 1
            found.setdefault(str(value.name), Parameter(kind, shape, fan_in))
    return found


def trained_inputs(node: ir.Node) -> Iterator[tuple[int, str]]:
    """Positions and kinds of a node's trained constants."""
    kinds = INPUTS[node.op_type] if is_op(node, *INPUTS) else {}
    if is_op(node, "Add") and any(is_op(producer(value), "MatMul") for value in node.inputs):
        kinds = {0: BIAS, 1: BIAS}
    for index, kind in kinds.items():
        value = input_at(node, index)
        array = constant(value) if value is not None and value.is_initializer() else None
        if array is not None and array.dtype == np.float32 and array.size:
            yield index, kind


def draw(parameters: Mapping[str, Parameter], seed: int) -> Arrays:
    """Initial values by name; they depend on seed, order and shapes alone."""
    rng = np.random.default_rng(seed)
    return {name: parameter.draw(rng) for name, parameter in parameters.items()}


def _fan_in(node: ir.Node, index: int, shape: tuple[int, ...]) -> int:
    """The inputs of one output of a Conv, a ConvTranspose or a matrix.

    The weight of a Conv is (out, in / group, ...), that of a ConvTranspose (in, out / group, ...).
    An output of a ConvTranspose is reached by one of every stride taps along each axis.
    """
    taps = int(np.prod(shape[2:], dtype=np.int64))
    if node.op_type == "Conv":
        return max(shape[1] * taps, 1)
    if node.op_type == "ConvTranspose":
        reached = taps // int(np.prod(node.attributes.get_ints("strides", ())))
        return max(shape[0] // node.attributes.get_int("group", 1) * reached, 1)
    if len(shape) < 2:
        return max(shape[0], 1) if shape else 1
    transposed = bool(node.attributes.get_int("transA" if index == 0 else "transB", 0))
    summed = -1 if (index == 0) != transposed else -2
    return max(shape[summed], 1)


PREFIX = "onnxq.student"
"""What the names of added nodes begin with."""

MEAN, VARIANCE = 3, 4
"""Inputs of a BatchNormalization that hold its running statistics."""


@dataclass(frozen=True)
class Moments:
    """The names of one BatchNormalization's running statistics, and of those of a batch.

    Attributes:
        mean: the initializer of the running mean.
        variance: the initializer of the running variance.
        batch_mean: the tensor of the training graph with the mean over a batch.
        batch_variance: likewise.
    """

    mean: str
    variance: str
    batch_mean: str
    batch_variance: str


class FloatNetwork:
    """A float model whose weights are trained, with its BatchNormalization unfolded.

    Args:
        unfolded: as normalisation returns it; it isn't changed.

    Attributes:
        model: a copy in which layers have constants of their own, except for tied weights.
        parameters: the trained ones, by the name of the initializer.
        moments: of every BatchNormalization, in graph order.

    Raises:
        ModelError: nothing can be trained, or a BatchNormalization can't be in training mode.
    """

    def __init__(self, unfolded: ir.Model) -> None:
        self.model = unfolded.clone()
        _own_constants(self.model.graph)
        self.parameters: Mapping[str, Parameter] = find_parameters(self.model)
        if not self.parameters:
            raise ModelError(
                "The student has no constant float weights of Conv, ConvTranspose, Gemm or MatMul "
                "to train; give another student."
            )
        self.moments = [
            _moments(node, number) for number, node in enumerate(_batch_norms(self.model.graph))
        ]

    def start(self) -> Arrays:
        """The parameters in the file."""
        return {name: self._array(name) for name in self.parameters}

    def statistics(self) -> Arrays:
        """The running statistics in the file."""
        names = [name for each in self.moments for name in (each.mean, each.variance)]
        return {name: self._array(name) for name in names}

    def _array(self, name: str) -> np.ndarray:
        array = constant(self.model.graph.initializers[name])
        assert array is not None
        return np.array(array, np.float32)

    def inference(self, names: Mapping[str, str]) -> ir.Model:
        """The inference graph, with parameters and running statistics as inputs.

        Args:
            names: new names of its inputs and of some tensors.
        """
        copy = self.model.clone(deep_copy=False)
        free_constants(copy.graph, [*self.parameters, *self.statistics()])
        rename(copy.graph, names)
        return copy

    def training(self, names: Mapping[str, str]) -> ir.Model:
        """The training graph, with parameters as inputs and BatchNormalization by batch statistics.

        Args:
            names: as for `inference`.
        """
        copy = self.model.clone(deep_copy=False)
        parts = Parts(copy, PREFIX)
        for node, moments in zip(list(_batch_norms(copy.graph)), self.moments, strict=True):
            x, scale, bias = node.inputs[:3]
            assert x is not None and scale is not None and bias is not None
            norm = training_norm(parts, node, x, scale, bias)
            norm.mean.name, norm.variance.name = moments.batch_mean, moments.batch_variance
            _take_the_place(copy.graph, node, norm.output)
        parts.extend()
        copy.graph.sort()
        free_constants(copy.graph, list(self.parameters))
        rename(copy.graph, names)
        return copy

    def with_values(self, values: Mapping[str, np.ndarray]) -> ir.Model:
        """The model with these constants in place of its own, as it is written."""
        copy = self.model.clone(deep_copy=False)
        for name, array in values.items():
            tensor = ir.tensor(np.asarray(array, np.float32), name=name)
            copy.graph.initializers[name].const_value = tensor
        return copy


def free_constants(graph: ir.Graph, names: Collection[str]) -> None:
    """Turn initializers into graph inputs of the same names, in place."""
    for name in dict.fromkeys(names):
        free_initializer(graph, graph.initializers[name])


def rename(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Rename tensors, in place; another tensor of the same name gets a new one."""
    values = values_by_name(graph)
    taken = set(names.values()) - set(names)
    for name in taken & set(values):
        values[name].name = f"{PREFIX}.{name}"
    renamed = [(values[name], new) for name, new in names.items()]
    for number, (value, _) in enumerate(renamed):
        # Two that change names must not meet on the way.
        value.name = f"{PREFIX}.renamed.{number}"
    for value, new in renamed:
        value.name = new


def _take_the_place(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Replace a node's output by a new tensor of the same name."""
    old = node.outputs[0]
    name, old.name = old.name, f"{PREFIX}.replaced.{old.name}"
    output.name, output.type, output.shape = name, old.type, old.shape
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _batch_norms(graph: ir.Graph) -> Iterator[ir.Node]:
    """The BatchNormalization nodes with constant parameters, which are put into training mode."""
    for node in graph:
        if is_op(node, "BatchNormalization") and batch_norm_refusal(node) is None:
            yield node


def _moments(node: ir.Node, number: int) -> Moments:
    source, mean, variance = node.inputs[0], node.inputs[MEAN], node.inputs[VARIANCE]
    assert source is not None and mean is not None and variance is not None
    if source.shape is None or len(source.shape) < 2:
        raise ModelError(
            f"The rank of what the student's BatchNormalization '{node.name}' takes is not known; "
            "export the student with its shapes."
        )
    batch = f"{PREFIX}.batch.{number}"
    return Moments(str(mean.name), str(variance.name), f"{batch}.mean", f"{batch}.variance")


def _own_constants(graph: ir.Graph) -> None:
    """Give each layer its own statistics, and its own copy of repeated constants, in place.

    Exporters store equal constants once: all scales of an untrained model are one tensor of ones,
    and all biases one of zeros. They are equal at the start, and not tied.
    """
    for node in list(graph):
        own = [i for i, _ in trained_inputs(node) if _is_one_number(node.inputs[i])]
        if is_op(node, "BatchNormalization") and batch_norm_refusal(node) is None:
            own += [MEAN, VARIANCE]
        for index in own:
            value = node.inputs[index]
            assert value is not None
            if len(value.uses()) > 1:
                node.replace_input_with(index, _copied(graph, value, node, index))


def _copied(graph: ir.Graph, value: ir.Value, node: ir.Node, index: int) -> ir.Value:
    array = constant(value)
    assert array is not None
    return add_initializer(graph, f"{value.name}.{node.name}.{index}", array.copy())


def _is_one_number(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and bool((array == array.flat[0]).all())


MOST_SAMPLES = 1024
"""More add nothing to a mean and a variance."""


class BatchStatistics:
    """Mean and variance of each BatchNormalization's input over the training samples.

    The model runs in training mode, and the moments of all batches are pooled (Wu and Johnson 2021,
    "precise BatchNorm"): m = mean m_b, v = mean(v_b + m_b^2) - m^2. Nothing lags behind the
    weights, as a running mean would, and the same weights give the same statistics.

    Args:
        training: the training graph, with the teacher's tensor names.
        moments: of its BatchNormalization.
        train: feeds of the training slice.
        batch_size: samples in a batch, as in training.
    """

    def __init__(
        self, training: ir.Model, moments: Sequence[Moments], train: Dataset, batch_size: int
    ) -> None:
        self._moments, self._train = list(moments), train
        self._size = batch_size if train.batch is None else 1
        names = [name for m in self._moments for name in (m.batch_mean, m.batch_variance)]
        copy = expose(training, names)
        for output in copy.graph.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self._model = copy

    def measure(self, parameters: Mapping[str, np.ndarray]) -> Arrays:
        """The statistics by name, float32 `(channels,)`."""
        if not self._moments:
            return {}
        count = min(len(self._train), MOST_SAMPLES // (self._train.batch or 1) or 1)
        found = Mapped(self._train, run_by(self._model, constants=parameters))
        return self._pooled(list(found.batches(self._size, np.arange(_whole(count, self._size)))))

    def _pooled(self, found: Sequence[Arrays]) -> Arrays:
        statistics: Arrays = {}
        for each in self._moments:
            means, variances = (
                np.stack([batch[name].reshape(-1) for batch in found]).astype(np.float64)
                for name in (each.batch_mean, each.batch_variance)
            )
            mean = means.mean(axis=0)
            variance = (variances + np.square(means)).mean(axis=0) - np.square(mean)
            statistics[each.mean] = mean.astype(np.float32)
            statistics[each.variance] = np.maximum(variance, 0).astype(np.float32)
        return statistics


def _whole(count: int, size: int) -> int:
    """The positions that fill whole batches: all batches count the same in the mean."""
    return count - count % size if count > size else count
