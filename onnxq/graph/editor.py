"""Edits of a graph by value: nodes put in, values rewired, names that are not taken yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir


class Names:
    """Gives each name once.

    Args:
        taken: those that are given already.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def claim(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2`, … where that is taken; taken from now on."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


class Editor:
    """Adds to one graph and rewires it; every new name is unique in it.

    Args:
        graph: the graph to edit; names in its sub-graphs count as taken.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = Names(taken_names(graph))

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, … where that is taken; taken from now on."""
        return self._names.claim(base)

    def initializer(self, base: str, array: np.ndarray) -> ir.Value:
        """A new constant of the graph, named after `base`."""
        name = self.fresh_name(base)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        self.graph.register_initializer(value)
        return value

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
            name: the node's name, or the base of one.
            keep_name: the name is that of a node which this one replaces.
        """
        node_name = name if keep_name else self.fresh_name(name)
        attrs = ir.convenience.convert_attributes(dict(attributes or {}))
        output = ir.Value(name=self.fresh_name(f"{node_name}_output"))
        return ir.Node("", op_type, inputs, attrs, outputs=[output], name=node_name)

    def replace(self, old: ir.Node, new: Sequence[ir.Node]) -> None:
        """Put `new` in the place of `old`; the last one's output takes over the first output."""
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
        """Take out the nodes that nobody reads any more, last one first."""
        for node in reversed(list(nodes)):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                self.graph.remove(node, safe=True)


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
