"""The student that a generator goes on learning against: the one that is being quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.graph.nested import has_subgraph
from onnxq.normalise.facts import constant
from onnxq.session import Arrays, Feeds
from onnxq.synthesise.float_student import PREFIX
from onnxq.synthesise.parts import Parts


@dataclass(frozen=True)
class QuantizedStudent:
    """A student with fake-quantized tensors, in the graph of another network.

    Gradients pass its rounding straight through, as where it is learned itself.

    Attributes:
        model: the student; its numbers are graph inputs.
        images: the input that takes what the network takes.
        logits: the tensor to compare.
    """

    model: ir.Model
    images: str
    logits: str

    def feeds(self, numbers: Feeds) -> Arrays:
        """The student's numbers by the names of `inputs`."""
        return {f"{PREFIX}.{name}": array for name, array in numbers.items()}

    def inputs(self) -> dict[str, ir.Value]:
        """The graph inputs of its numbers."""
        found = [value for value in self.model.graph.inputs if value.name != self.images]
        names = [f"{PREFIX}.{value.name}" for value in found]
        return {n: ir.val(n, v.dtype, v.shape) for n, v in zip(names, found, strict=True)}

    def attach(self, parts: Parts, model: ir.Model, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """All nodes that the logits need, once more in another graph.

        Args:
            parts: takes the nodes.
            model: the other network, which gets the student's functions; with its images.
            inputs: of the numbers.

        Returns:
            The student's logits.

        Raises:
            ModelError: one of the nodes holds a graph of its own.
        """
        values = {v.name: v for v in [*model.graph.inputs, *_computed(model)]}
        copies = {
            v: values[self.images] if v.name == self.images else inputs[f"{PREFIX}.{v.name}"]
            for v in self.model.graph.inputs
        }
        logits = next(v for v in _computed(self.model) if v.name == self.logits)
        for node in _needed(self.model, logits):
            read = [_read(parts, value, copies) for value in node.inputs]
            for old, made in zip(node.outputs, parts.copy(node, read), strict=True):
                made.type, made.shape = old.type, old.shape
                copies[old] = made
        model.functions.update(self.model.functions)
        model.graph.opset_imports.update(self.model.graph.opset_imports)
        return copies[logits]


def _computed(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs]


def _needed(model: ir.Model, logits: ir.Value) -> list[ir.Node]:
    """The nodes before a value, in graph order."""
    wanted: set[ir.Value | None] = {logits}
    found = []
    for node in reversed(model.graph):
        if wanted.isdisjoint(node.outputs):
            continue
        if has_subgraph(node):
            raise ModelError(
                f"The node '{node.name}' ({node.op_type}) holds a graph, and the generator can't "
                "learn against it; leave out --generator-mode adversarial."
            )
        found.append(node)
        wanted.update(node.inputs)
    return found[::-1]


def _read(
    parts: Parts, value: ir.Value | None, copies: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """What a copied node reads: a copy, or a constant that is made when it is first read."""
    if value is None:
        return None
    if value not in copies:
        array = constant(value)
        assert array is not None
        copies[value] = parts.constant(array)
    return copies[value]
