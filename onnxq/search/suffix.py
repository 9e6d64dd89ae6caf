"""What one weight can reach in a model, as a session that takes the weight as an input.

All other weights stay initializers: a fed one loses ONNX Runtime's blocked layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import bias_name, needs_bias
from onnxq.rewrite.split import split
from onnxq.rewrite.student import free_parameters
from onnxq.session import Arrays, Feeds, SessionPool


class Suffix:
    """The part of a model behind one weight, the weight and its layers' biases as inputs.

    Args:
        model: the float model with the compared tensors as its outputs; it isn't changed.
        layers: those that read the weight.

    Attributes:
        parameters: names of the inputs that take the weight and the biases.
        inputs: names of the tensors of the model that the other inputs take.
        outputs: names of the compared tensors that the weight can reach.
        nbytes: bytes of the initializers.
    """

    def __init__(self, model: ir.Model, layers: Sequence[LayerSpec]) -> None:
        freed = model.clone(deep_copy=False)
        for spec in layers:
            free_parameters(freed.graph, spec)
        biases = [bias_name(spec) for spec in layers if needs_bias(spec)]
        self.parameters = (layers[0].weight, *biases)
        self._model = split(freed, self.parameters).suffix
        graph = self._model.graph
        _drop_passed_through(graph)
        names = [str(value.name) for value in graph.inputs]
        self.inputs = tuple(name for name in names if name not in self.parameters)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        constants = [value.const_value for value in graph.initializers.values()]
        self.nbytes = sum(each.nbytes for each in constants if each is not None)
        self._session: SessionPool | None = None

    def open(self) -> None:
        """Open the session; several threads may run it at once."""
        if self.outputs:
            self._session = SessionPool(self._model, workers=1)

    def close(self) -> None:
        """Let go of the session and its memory."""
        self._session = None

    def run(self, parameters: Feeds, tensors: Feeds) -> Arrays:
        """The outputs by name; those that the weight can't reach are not among them.

        Args:
            parameters: the weight and the biases.
            tensors: the model's tensors on one batch, `inputs` among them.
        """
        if self._session is None:
            return {}
        return self._session.run({**{name: tensors[name] for name in self.inputs}, **parameters})


def _drop_passed_through(graph: ir.Graph) -> None:
    """Remove the outputs that are computed before the cut, and the inputs that only they read."""
    for value in [each for each in graph.outputs if each.producer() is None]:
        graph.outputs.remove(value)
        if not value.uses():
            graph.inputs.remove(value)
