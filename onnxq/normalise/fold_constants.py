"""Nodes that compute the same in every run become initializers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.load.limits import DEFAULT_DOMAINS
from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import is_constant, is_used
from onnxq.normalise.passes import PassResult
from onnxq.session import open_session

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


class FoldConstants:
    """Runs the part of the main graph that no input reaches, once, and keeps its results.

    Nodes with sub-graphs, random ones and those outside ONNX's own domain are left alone,
    and so is a result of more than `size_limit` bytes that is larger than what it is made
    from.

    Args:
        size_limit: bytes.
    """

    def __init__(self, size_limit: int = 16 * 2**20) -> None:
        self.size_limit = size_limit

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was folded."""
        nodes = _constant_nodes(model.graph)
        results = [v for node in nodes for v in node.outputs if _leaves(v, set(nodes))]
        if not results:
            return PassResult(model, modified=False)
        arrays = self._run(model, nodes, results)
        if arrays is None:
            return PassResult(model, modified=False)
        editor = Editor(model.graph)
        modified = False
        for value, array in zip(results, arrays, strict=True):
            if isinstance(array, np.ndarray) and self._worth(nodes, array):
                _put(editor, value, array)
                modified = True
        editor.remove(nodes)
        return PassResult(model, modified)

    def _worth(self, nodes: Sequence[ir.Node], array: np.ndarray) -> bool:
        source = sum(_nbytes(value) for node in nodes for value in node.inputs)
        return array.nbytes <= max(self.size_limit, source)

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


def _constant_nodes(graph: ir.Graph) -> list[ir.Node]:
    found: list[ir.Node] = []
    known: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if (
            node.domain in DEFAULT_DOMAINS
            and node.op_type not in _RANDOM
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


def _nbytes(value: ir.Value | None) -> int:
    return 0 if value is None or value.const_value is None else int(value.const_value.nbytes)


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


def _put(editor: Editor, value: ir.Value, array: np.ndarray) -> None:
    name = str(value.name)
    new = editor.initializer(name, array)
    value.replace_all_uses_with(new)
