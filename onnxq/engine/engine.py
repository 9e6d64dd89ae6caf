"""Loss and gradients of a model for a batch in shards, by a plain inference session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.engine.kernels import ORT_TRAINING, resolve_engine
from onnxq.engine.reverse import gradient_graph
from onnxq.errors import EngineError
from onnxq.options.table import AUTO, EngineName
from onnxq.runtime.costs import TRAINING, Meter
from onnxq.runtime.session import Arrays, Feeds, available_cores, open_session


class Engine:
    """Gradients of one graph's loss; several threads may run its session side by side.

    All trained parameters are graph inputs, and each call passes their values. ONNX Runtime's
    backward pass hardly uses a second thread. So a batch is cut into shards, each thread works on
    one shard at a time, and results are added up in the order of the shards: the same bytes on one
    core and on many.

    Args:
        model: the student with its loss as a graph output; it isn't changed.
        trainable: float graph inputs to differentiate for.
        loss: name of an output with one element; the loss of a batch is the sum over shards.
        extra_outputs: further outputs to return, see ``extras``.
        workers: shards that run side by side; None means one per core.
        kernels: whose kernels compute the gradients.

    Attributes:
        extras: further outputs of the last call, one dict per shard.

    Raises:
        EngineError: the kernels are not installed, an input or output doesn't exist, or a node
            has no gradient.
    """

    def __init__(
        self,
        model: ir.Model,
        trainable: Sequence[str],
        loss: str = "loss",
        extra_outputs: Sequence[str] = (),
        workers: int | None = None,
        kernels: EngineName = AUTO,
    ) -> None:
        training = resolve_engine(kernels) == ORT_TRAINING
        _check_trainable(model, trainable)
        self.trainable = tuple(trainable)
        self.extras: list[Arrays] = []
        whole, found = gradient_graph(model, trainable, loss, extra_outputs, training)
        self._outputs = [loss, *extra_outputs, *found.values()]
        self._reached = list(found)
        self._workers = workers or available_cores()
        self._session = open_session(whole, merge=False)
        self._meter = Meter(model, TRAINING)
        self._inputs = {value.name for value in self._session.get_inputs()}

    def gradients(
        self, parameters: Mapping[str, np.ndarray], shards: Sequence[Feeds]
    ) -> tuple[float, Arrays]:
        """The loss and its gradients, summed over the shards.

        Args:
            parameters: values of the trainable inputs by name, float32; contiguous arrays
                are read in place, without a copy.
            shards: the other inputs, one dict per shard; shards may differ in size.

        Returns:
            The loss, and a float32 gradient per trainable input in the shape of its value;
            the gradient of an input that the loss doesn't depend on is zero. Sums are
            taken in float64, in the order of the shards.
        """
        values = {name: np.asarray(parameters[name], np.float32, "C") for name in self.trainable}
        results = self._run_all(values, shards)
        count = len(self._outputs) - len(self._reached)
        names = self._outputs[1:count]
        self.extras = [dict(zip(names, result[1:count], strict=True)) for result in results]
        loss = sum(float(result[0].reshape(())) for result in results)
        found = {
            name: _total([result[count + i] for result in results])
            for i, name in enumerate(self._reached)
        }
        zeros = {name: np.zeros_like(values[name]) for name in self.trainable if name not in found}
        return loss, {**zeros, **found}

    def each(self, shards: Sequence[Feeds]) -> list[tuple[Arrays, Arrays]]:
        """Loss and gradients of each shard by itself, where shards hold trainable inputs too.

        Returns:
            For each shard the loss and the extra outputs by name, and the gradients of the
            trainable inputs that the loss depends on.
        """
        count = len(self._outputs) - len(self._reached)
        return [
            (
                dict(zip(self._outputs[:count], result[:count], strict=True)),
                dict(zip(self._reached, result[count:], strict=True)),
            )
            for result in self._run_all({}, shards)
        ]

    def _run_all(self, parameters: Arrays, shards: Sequence[Feeds]) -> list[list[np.ndarray]]:
        """Results by shard."""
        shared = {k: _ort_value(v) for k, v in parameters.items() if k in self._inputs}
        workers = min(self._workers, len(shards))
        if workers == 1:
            return [self._run(shared, shard) for shard in shards]
        with ThreadPoolExecutor(workers) as executor:
            return list(executor.map(lambda shard: self._run(shared, shard), shards))

    def _run(self, shared: dict[str, ort.OrtValue], shard: Feeds) -> list[np.ndarray]:
        self._meter.count(shard)
        binding = self._session.io_binding()
        # The binding doesn't keep the arrays alive: `inputs` does, until the run is over.
        inputs = {k: _ort_value(v) for k, v in shard.items() if k in self._inputs} | shared
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]


def _ort_value(array: np.ndarray) -> ort.OrtValue:
    """The array as ONNX Runtime's value; it shares memory with a contiguous array."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def _total(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum in the order of the parts, computed in float64 and returned as float32."""
    total = parts[0].astype(np.float64)
    for part in parts[1:]:
        total += part
    return total.astype(np.float32)


def _check_trainable(model: ir.Model, trainable: Sequence[str]) -> None:
    inputs = {value.name: value for value in model.graph.inputs}
    for name in trainable:
        if name not in inputs:
            raise EngineError(
                f"the trainable input '{name}' is not an input of the graph; "
                "make it one before the engine is built."
            )
        if inputs[name].dtype not in (None, ir.DataType.FLOAT):
            raise EngineError(
                f"the trainable input '{name}' is {inputs[name].dtype}; expected float32."
            )
