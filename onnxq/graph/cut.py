"""Parts of a graph: what a value reaches, and the graph in two at a cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import is_op, nested_nodes, reads


def moved_by_inputs(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on what the inputs hold, the inputs themselves among them.

    Those that depend on the inputs' sizes alone do not.

    Args:
        graph: the main graph, its nodes in order.
    """
    moved = {value for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        if not is_op(node, "Shape", "Size") and any(value in moved for value in read_by(node)):
            moved.update(node.outputs)
    return moved


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """What a node and its sub-graphs read, wherever it comes from."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            yield from graph.outputs
            for inner in graph:
                yield from read_by(inner)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


@dataclass(frozen=True)
class Split:
    """The two parts of a graph; run one after the other they give what the whole gives.

    Attributes:
        prefix: from the model's inputs to the cut; None where the suffix is the whole.
        suffix: from the cut, and the inputs that it still reads, to the model's outputs.
        cut: names of the values that the prefix gives and the suffix takes, in graph order.
    """

    prefix: ir.Model | None
    suffix: ir.Model
    cut: tuple[str, ...]


def split(model: ir.Model, seeds: Collection[str]) -> Split:
    """The model cut before everything that the seeds reach.

    Args:
        model: it isn't changed.
        seeds: names of nodes, or of graph inputs whose readers are meant.
    """
    # What constants give is no tensor of a sample: each part computes it for itself.
    reached = reach(model.graph, seeds) | _constant_nodes(model.graph)
    cut = _cut(model.graph, reached)
    names = tuple(str(value.name) for value in cut)
    return Split(_prefix(model, names) if names else None, _suffix(model, reached, names), names)


def _constant_nodes(graph: ir.Graph) -> set[str]:
    """Names of the nodes that no graph input reaches."""
    moving = set(graph.inputs)
    for node in graph:
        if any(value in moving for value in reads(node)):
            moving.update(node.outputs)
    return {str(n.name) for n in graph if not any(v in moving for v in n.outputs)}


def between(model: ir.Model, inputs: Collection[str], outputs: Sequence[str]) -> ir.Model:
    """The part of a graph from some of its tensors to some others.

    Args:
        model: it isn't changed.
        inputs: names of tensors that become inputs, or are.
        outputs: names of the tensors wanted; none of them among the inputs.
    """
    copy = model.clone(deep_copy=False)
    graph = copy.graph
    values = {v.name: v for node in graph for v in node.outputs}
    graph.outputs[:] = [values[name] for name in outputs]
    for name in inputs:
        if name in values:
            _as_input(graph, values[name])
    needed = _ancestors(graph.outputs)
    for node in reversed(list(graph)):
        if node not in needed:
            _remove(node)
    _drop_unused(graph)
    return copy


def reach(graph: ir.Graph, seeds: Collection[str]) -> set[str]:
    """Names of the seed nodes, of the readers of seed inputs, and of all that depends on them."""
    wanted = set(seeds)
    changed = {value for value in graph.inputs if value.name in wanted}
    found: set[str] = set()
    for node in graph:
        if node.name in wanted or any(value in changed for value in reads(node)):
            found.add(str(node.name))
            changed.update(node.outputs)
    return found


def _cut(graph: ir.Graph, reached: Collection[str]) -> list[ir.Value]:
    """The values that nodes of the suffix, or its outputs, take from nodes of the prefix."""
    wanted = {v for node in graph if node.name in reached for v in reads(node)}
    wanted.update(value for value in graph.outputs)
    before = [node for node in graph if node.name not in reached]
    return [value for node in before for value in node.outputs if value in wanted]


def _prefix(model: ir.Model, names: Collection[str]) -> ir.Model:
    copy = model.clone(deep_copy=False)
    values = {v.name: v for node in copy.graph for v in node.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    needed = _ancestors(copy.graph.outputs)
    for node in reversed(list(copy.graph)):
        if node not in needed:
            _remove(node)
    _drop_unused(copy.graph)
    return copy


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node for value in values if (node := value.producer()) is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            producers = (value.producer() for value in reads(node))
            waiting.extend(each for each in producers if each is not None)
    return found


def _suffix(model: ir.Model, reached: Collection[str], names: Collection[str]) -> ir.Model:
    copy = model.clone(deep_copy=False)
    graph = copy.graph
    for node in list(graph):
        for value in node.outputs if node.name not in reached else ():
            if value.name in names:
                _as_input(graph, value)
    for node in reversed(list(graph)):
        if node.name not in reached:
            _remove(node)
    _drop_unused(graph)
    return copy


def _as_input(graph: ir.Graph, value: ir.Value) -> None:
    """Let the readers of a value, the graph's outputs among them, read an input of that name."""
    fresh = ir.Value(name=value.name, type=value.type, shape=value.shape)
    value.name = f"{value.name}.before"
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = fresh
    value.replace_all_uses_with(fresh)
    graph.inputs.append(fresh)


def _remove(node: ir.Node) -> None:
    """Take a node out of its graph, with what its sub-graphs read."""
    for inner in nested_nodes(node):
        for index in range(len(inner.inputs)):
            inner.replace_input_with(index, None)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _drop_unused(graph: ir.Graph) -> None:
    """Remove the initializers and inputs that nothing reads any more."""
    used = {v for node in graph for v in reads(node)} | set(graph.outputs)
    for name, value in list(graph.initializers.items()):
        if value not in used:
            del graph.initializers[name]
    for value in list(graph.inputs):
        if value not in used:
            graph.inputs.remove(value)
