"""The real numbers behind what a file stores: weights and biases as its layers read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.session import open_session


def stored_array(value: ir.Value | None) -> np.ndarray | None:
    """The float array of a constant or of what the graph computes from constants alone.

    ONNX Runtime computes it, in whatever form the weights are stored.

    Args:
        value: a value of the main graph.

    Returns:
        the array, or None where the value depends on the graph's inputs, or is None.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    graph = value.graph
    if graph is None or not _is_constant(value):
        return None
    part = ir.Model(ir.convenience.extract(graph, [], [value]), ir_version=10)
    ir.external_data.load_to_model(part)
    found: np.ndarray = open_session(part, optimise=False).run(None, {})[0]
    return found


def _is_constant(value: ir.Value) -> bool:
    """Whether every path to the value starts at an initializer or a node without inputs."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in seen or current.const_value is not None:
            continue
        seen.add(current)
        node = current.producer()
        if node is None or node.domain:
            return False
        waiting += [each for each in node.inputs if each is not None]
    return True
