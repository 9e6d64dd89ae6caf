"""Edits of a graph: inserting nodes, rewiring values, unique names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import tape


class Names:
    """Unique names.

    Args:
        taken: names that are in use.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def claim(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, … where that is taken; the result is then taken."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


class Editor:
    """Adds to one graph and rewires it; every new name is unique in it.

    Args:
        graph: the graph to edit; names in its sub-graphs are taken too.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = Names(taken_names(graph))

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, … where that is taken; the result is then taken."""
        return self._names.claim(base)

    def initializer(self, base: str, array: np.ndarray) -> ir.Value:
        """A new constant of the graph, named after `base`."""
        return add_initializer(self.graph, self.fresh_name(base), array)

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        name: str,
        keep_name: bool = False,
    ) -> ir.Node:
        """A new node with one output, not in the graph yet.

        Args:
            op_type: an operator of ONNX's own domain.
            inputs: its inputs; None for an absent one.
            attributes: its attributes, in Python types.
            name: the node's name, or a base for one.
            keep_name: whether `name` is used unchanged, as that of a node which is replaced.
        """
        node_name = name if keep_name else self.fresh_name(name)
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        output = ir.Value(name=self.fresh_name(f"{node_name}_output"))
        return ir.Node("", op_type, inputs, attrs, outputs=[output], name=node_name)

    def replace(self, old: ir.Node, new: Sequence[ir.Node]) -> None:
        """Replace a node by `new` nodes; the last one's output replaces its first output."""
        self.graph.insert_before(old, new)
        self.take_over(old.outputs[0], new[-1].outputs[0])
        self.remove([old])

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Move readers, name, type and shape from one value to another.

        `new` must not be a graph input, a graph output or an initializer.
        """
        name = old.name
        new.type = old.type if old.type is not None else new.type
        new.shape = old.shape if old.shape is not None else new.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = self.fresh_name(f"{name}_replaced")
        new.name = name

    def remove(self, nodes: Iterable[ir.Node]) -> None:
        """Remove the nodes that nothing reads any more, last one first."""
        for node in reversed(list(nodes)):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                self.graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to a graph, under a name that is not taken."""
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    return tape.Tape(graph).initializer(tensor)


def free_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Replace an initializer by a new graph input of its name, type and shape."""
    assert value.const_value is not None
    fresh = ir.val(str(value.name), value.const_value.dtype, value.const_value.numpy().shape)
    value.replace_all_uses_with(fresh)
    del graph.initializers[str(value.name)]
    graph.inputs.append(fresh)
    return fresh


def fix_inputs(graph: ir.Graph, values: Mapping[str, np.ndarray]) -> None:
    """Turn graph inputs into constants of the same names, in place."""
    for value in list(graph.inputs):
        if value.name in values:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(values[str(value.name)], name=value.name)
            graph.register_initializer(value)


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes after the one that computes a value, or at the head where no node does."""
    writer = value.producer()
    if writer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(writer, nodes)


def taken_names(graph: ir.Graph) -> set[str]:
    """All names of values, initializers and nodes in a graph and its sub-graphs."""
    values = [*graph.inputs, *graph.initializers.values()]
    names = {str(value.name) for value in values}
    for node in graph.all_nodes():
        names.add(str(node.name))
        names.update(str(output.name) for output in node.outputs)
    for subgraph in graph.subgraphs():
        names.update(str(value.name) for value in subgraph.inputs)
        names.update(subgraph.initializers)
    return names
