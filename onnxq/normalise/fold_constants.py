"""Constant folding: constants lifted out of nodes, and computed where the file does not grow."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.graph.editor import Editor
from onnxq.graph.facts import DEFAULT_DOMAINS, is_constant, is_used, producer
from onnxq.graph.operators import TABLE, WEIGHT_OPERATORS, weight_index
from onnxq.graph.scaled_weight import scaled_weight, shares
from onnxq.normalise.passes import PassResult
from onnxq.numerics.packing import collapsed
from onnxq.runtime.session import open_session

logger = logging.getLogger(__name__)

_RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    }
)


SMALL = 1024
"""Bytes of a result that is folded whatever it is made from: a shape, a scalar, a bias."""


class FoldConstants:
    """Computes the part of the main graph that no input reaches, and keeps results that pay.

    Nodes with sub-graphs, random ones and those outside ONNX's own domain are not folded. Results
    that take more bytes than the constants that they replace are left to be computed when a session
    starts: tiled and transposed copies, tables given by a formula, weights under the factors of
    layers that share them. A layer's weight counts one byte per element, since it is stored in
    integers. What repeats along an axis is stored once.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was folded."""
        nodes = _constant_nodes(model.graph)
        results = [v for node in nodes for v in node.outputs if _leaves(v, set(nodes))]
        arrays = self._run(model, nodes, results) if results else None
        if arrays is None:
            return PassResult(model, modified=False)
        found = {v: a for v, a in zip(results, arrays, strict=True) if isinstance(a, np.ndarray)}
        editor = Editor(model.graph)
        modified = False
        for part in _connected(nodes):
            for value in _worth(part, found):
                kept = editor.initializer(str(value.name), found[value])
                value.replace_all_uses_with(kept)
                modified = True
        editor.remove(nodes)
        return PassResult(model, modified)

    def _run(
        self, model: ir.Model, nodes: Sequence[ir.Node], results: Sequence[ir.Value]
    ) -> list[object] | None:
        part = _part(model, nodes, results)
        try:
            session = open_session(part, optimise=False)
            return list(session.run(None, {}))
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            logger.debug("FoldConstants: %d nodes left alone: %s", len(nodes), error)
            return None


def _connected(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """The nodes in groups that share no value, each in graph order."""
    group: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        merged = [node]
        for value in node.inputs:
            writer = producer(value)
            if writer in group and group[writer] is not group.get(node):
                merged = group[writer] + merged
                group |= dict.fromkeys(merged, merged)
        group |= dict.fromkeys(merged, merged)
    order = {node: i for i, node in enumerate(nodes)}
    found = {id(members): members for members in group.values()}
    return [sorted(members, key=order.__getitem__) for members in found.values()]


def _worth(part: Sequence[ir.Node], found: Mapping[ir.Value, np.ndarray]) -> list[ir.Value]:
    """The results of a group to keep: small ones, and large ones where all of them together pay."""
    inside = set(part)
    results = [v for node in part for v in node.outputs if v in found and _leaves(v, inside)]
    costs = {value: _cost(value, found[value]) for value in results}
    large = [value for value in results if costs[value] > SMALL]
    if sum(costs[value] for value in large) <= _freed(part):
        return results
    return [value for value in results if value not in large]


def _cost(value: ir.Value, array: np.ndarray) -> int:
    """Bytes that a result will take in the exported file."""
    weight = all(_is_weight_of(use.node, use.idx) for use in value.uses())
    stored = collapsed(array)
    return stored.size if weight and array.dtype == np.float32 else stored.nbytes


def _is_weight_of(node: ir.Node, index: int) -> bool:
    """Whether a node's input is the weight of a layer, which is stored in integers."""
    layer = node.op_type in (*WEIGHT_OPERATORS, TABLE)
    return layer and index == weight_index(node.op_type)


def _freed(part: Sequence[ir.Node]) -> int:
    """Bytes of the constants that only this group reads."""
    inside = set(part)
    read = {v for node in part for v in node.inputs if v is not None and v.const_value is not None}
    alone = (v for v in read if all(use.node in inside for use in v.uses()))
    return sum(v.const_value.nbytes for v in alone if v.const_value and not v.is_graph_output())


def _constant_nodes(graph: ir.Graph) -> list[ir.Node]:
    found: list[ir.Node] = []
    known: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if (
            node.domain in DEFAULT_DOMAINS
            and node.op_type not in _RANDOM
            and not _shared_under_factor(node)
            and all(value in known or is_constant(value) for value in inputs)
            and not any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for a in node.attributes.values()
            )
            and not any(output.is_graph_output() for output in node.outputs)
        ):
            found.append(node)
            known.update(node.outputs)
    return found


def _leaves(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return is_used(value) and any(use.node not in nodes for use in value.uses())


def _shared_under_factor(node: ir.Node) -> bool:
    """Whether the node multiplies a weight that other layers share by a layer's factor."""
    return scaled_weight(node.outputs[0]) is not None and shares(node.outputs[0])


def _part(model: ir.Model, nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> ir.Model:
    """A model of copies of the nodes, without inputs."""
    copies: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []
    new_nodes: list[ir.Node] = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in copies:
                copies[value] = ir.Value(name=value.name, type=value.type, shape=value.shape)
                copies[value].const_value = value.const_value
                initializers.append(copies[value])
        outputs = [ir.Value(name=value.name, type=value.type) for value in node.outputs]
        copies.update(zip(node.outputs, outputs, strict=True))
        inputs = [None if value is None else copies[value] for value in node.inputs]
        attributes = list(node.attributes.values())
        new_nodes.append(
            ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=node.name)
        )
    graph = ir.Graph(
        [],
        [copies[value] for value in results],
        nodes=new_nodes,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="constants",
    )
    return ir.Model(graph, ir_version=model.ir_version)


class LiftConstants:
    """Turns the Constant nodes of the main graph and of sub-graphs into initializers.

    One whose value the graph returns stays a node: an initializer can't be an output.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any Constant was lifted."""
        result = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(
            model
        )
        return PassResult(model, bool(result.modified))
