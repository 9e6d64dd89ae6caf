"""Cut a graph into blocks, at tensors on which all later nodes depend.

A cut between two nodes in topological order is crossed by the tensors that are written before it
and read after it. Where only one tensor crosses, everything behind depends on it: residual blocks
stay whole, and chains give single layers. Where such a cut is far away, as in networks with long
skips, the cuts that the fewest tensors cross are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.facts import reads


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
    refused: Collection[str] = (),
) -> list[Block]:
    """All nodes of the graph in blocks of at least one layer each.

    Args:
        model: a sorted graph.
        layers: names of the layers.
        sources: names of the graph inputs for samples; the others are parameters.
        most: number of layers from which on a block may end at a cut of several tensors.
        refused: names of tensors that must not cross a cut.
    """
    nodes = list(model.graph)
    crossing = _crossing(model.graph, nodes, sources)
    ends = _ends(nodes, crossing, set(layers), most, set(refused))
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
    refused: set[str],
) -> list[int]:
    """The places of the cuts, each as late as possible before the next layer."""
    places = [i for i, node in enumerate(nodes) if node.name in layers][1:]
    allowed = [i for i in range(len(nodes)) if refused.isdisjoint(crossing[i])]
    ends: list[int] = []
    begin, count = 0, 1
    for place in places:
        # Every node that reads no layer of the block may come before the cut.
        fitting = [i for i in allowed if begin < i <= place and _holds(nodes[i:place], layers)]
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
