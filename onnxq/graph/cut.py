"""Graphs cut in two, into blocks, and what values depend on.

A cut between two nodes in topological order is crossed by the tensors that are written before it
and read after it. Where only one tensor crosses, everything behind depends on it: residual blocks
stay whole, and chains give single layers. Where such a cut is far away, as in networks with long
skips, the cuts that the fewest tensors cross are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import is_op, reads, values_by_name


def dependents(
    graph: ir.Graph, values: Iterable[ir.Value], counts: Callable[[ir.Value], bool] | None = None
) -> set[ir.Value]:
    """The values, and all that the main graph computes from them.

    Args:
        graph: its nodes in order.
        values: of the main graph.
        counts: whether a node's outputs are included; None includes all.
    """
    found = set(values)
    for node in graph:
        if not found.isdisjoint(reads(node)):
            found.update(v for v in node.outputs if counts is None or counts(v))
    return found


def ancestors(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Value]:
    """The values, and all values that the main graph computes them from; its nodes are in order."""
    found = set(values)
    for node in reversed(graph):
        if not found.isdisjoint(node.outputs):
            found.update(reads(node))
    return found


def moved_by_inputs(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on the inputs' contents, the inputs themselves among them.

    Values that depend on the inputs' sizes alone are left out.
    """
    fed = [value for value in graph.inputs if value.name not in graph.initializers]
    return dependents(graph, fed, lambda value: not is_op(value.producer(), "Shape", "Size"))


@dataclass(frozen=True)
class Split:
    """The two parts of a graph; run one after the other they compute what the whole computes.

    Attributes:
        prefix: from the model's inputs to the cut; None where the suffix is the whole.
        suffix: from the cut, and the inputs that it still reads, to the model's outputs.
        cut: names of the values that the prefix writes and the suffix reads, in graph order.
    """

    prefix: ir.Model | None
    suffix: ir.Model
    cut: tuple[str, ...]


def split(model: ir.Model, seeds: Collection[str]) -> Split:
    """The model, cut before everything that depends on the seeds.

    Args:
        model: it isn't changed.
        seeds: names of nodes, or of graph inputs, which stand for their readers.
    """
    graph = model.graph
    fed = dependents(graph, graph.inputs)
    # What constants give is no tensor of a sample: each part computes it for itself.
    constant = {str(node.name) for node in graph if fed.isdisjoint(node.outputs)}
    reached = reach(graph, seeds) | constant
    wanted = {v for node in graph if node.name in reached for v in reads(node)}
    wanted.update(graph.outputs)
    before = [node for node in graph if node.name not in reached]
    cut = [str(v.name) for node in before for v in node.outputs if v in wanted]
    outputs = [str(value.name) for value in graph.outputs]
    return Split(between(model, (), cut) if cut else None, between(model, cut, outputs), tuple(cut))


def between(model: ir.Model, inputs: Iterable[str], outputs: Sequence[str]) -> ir.Model:
    """The part of a graph between some of its tensors.

    Args:
        model: it isn't changed.
        inputs: names of tensors that become inputs, or are inputs.
        outputs: names of the tensors wanted.
    """
    values = values_by_name(model.graph)
    given = dict.fromkeys([*model.graph.inputs, *(values[n] for n in inputs if n in values)])
    graph = ir.convenience.extract(model.graph, list(given), outputs)
    for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        functions=[each.clone() for each in model.functions.values()],
        metadata_props=dict(model.metadata_props),
    )


def reach(graph: ir.Graph, seeds: Collection[str]) -> set[str]:
    """Names of the seed nodes, the readers of seed inputs, and all nodes that depend on them."""
    values = [value for value in graph.inputs if value.name in seeds]
    values += [value for node in graph if node.name in seeds for value in node.outputs]
    found = dependents(graph, values)
    return {str(node.name) for node in graph if not found.isdisjoint(node.outputs)}


@dataclass(frozen=True)
class Block:
    """Consecutive nodes.

    Attributes:
        layers: names of its layers, in graph order.
        inputs: names of the tensors that it reads from earlier nodes.
        outputs: names of its tensors that later nodes read, or that are graph outputs.
    """

    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_blocks(
    model: ir.Model,
    layers: Collection[str],
    sources: Collection[str],
    most: int = 8,
) -> list[Block]:
    """All nodes of the graph in blocks of at least one layer each.

    Args:
        model: a sorted graph.
        layers: names of the layers.
        sources: names of the graph inputs for samples; the others are parameters.
        most: number of layers from which on a block may end at a cut of several tensors.
    """
    nodes = list(model.graph)
    crossing = _crossing(model.graph, nodes, sources)
    ends = _ends(nodes, crossing, set(layers), most)
    blocks = []
    for start, end in zip([0, *ends], [*ends, len(nodes)], strict=True):
        blocks.append(_block(nodes[start:end], set(layers), sources, crossing[end], model.graph))
    return blocks


def _crossing(
    graph: ir.Graph, nodes: list[ir.Node], sources: Collection[str]
) -> list[dict[str, ir.Value]]:
    """For each place between two nodes, the names of the tensors that cross it."""
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys(reads(node), i)
    last |= dict.fromkeys(graph.outputs, len(nodes))
    alive = {v: v for v in graph.inputs if v.name in sources}
    found = []
    for i in range(len(nodes) + 1):
        alive = {v: v for v in alive if last.get(v, -1) >= i}
        found.append({str(v.name): v for v in alive})
        if i < len(nodes):
            alive |= {v: v for v in nodes[i].outputs}
    return found


def _ends(
    nodes: list[ir.Node],
    crossing: list[dict[str, ir.Value]],
    layers: set[str],
    most: int,
) -> list[int]:
    """The places of the cuts, each as late as possible before the next layer."""
    places = [i for i, node in enumerate(nodes) if node.name in layers][1:]
    ends: list[int] = []
    begin, count = 0, 1
    for place in places:
        # Every node that reads no layer of the block may come before the cut.
        fitting = [i for i in range(begin + 1, place + 1) if _holds(nodes[i:place], layers)]
        single = [i for i in fitting if len(crossing[i]) == 1]
        if single:
            ends.append(single[-1])
        elif count >= most and fitting:
            ends.append(min(fitting, key=lambda i: (len(crossing[i]), -i)))
        else:
            count += 1
            continue
        begin, count = ends[-1], 1
    return ends


def _holds(between: list[ir.Node], layers: set[str]) -> bool:
    """Whether the nodes hold no layer."""
    return all(node.name not in layers for node in between)


def _block(
    nodes: list[ir.Node],
    layers: set[str],
    sources: Collection[str],
    crossing: Mapping[str, ir.Value],
    graph: ir.Graph,
) -> Block:
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in reads(node) if value not in made)
    inputs = [v for v in read if v.producer() is not None or v.name in sources]
    outputs = [v for v in crossing.values() if v in made]
    return Block(
        tuple(str(node.name) for node in nodes if node.name in layers),
        tuple(str(value.name) for value in inputs),
        tuple(str(value.name) for value in outputs),
    )
