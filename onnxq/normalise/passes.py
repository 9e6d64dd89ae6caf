"""Passes over a model, and the runner that applies them in order."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir

from onnxq.graph.editor import Editor
from onnxq.graph.facts import DEFAULT_DOMAINS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassResult:
    """The result of a pass.

    Attributes:
        model: the model; the same object unless the pass says otherwise.
        modified: whether anything was changed; False on a second run.
        notes: sentences for the user.
    """

    model: ir.Model
    modified: bool
    notes: tuple[str, ...] = ()


class GraphPass(Protocol):
    """Changes a model in place; outputs, and names of inputs and outputs, stay."""

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether it was changed."""
        ...


class NodePass(ABC):
    """A pass over the nodes of the main graph; sub-graphs are not changed.

    Test and edit are separate: `refusal` says why a node is not rewritten (logged at debug with the
    node's name), and `rewrite` is called only where it returns None.
    """

    op_types: ClassVar[frozenset[str]]

    @abstractmethod
    def refusal(self, node: ir.Node) -> str | None:
        """Why the pass does not apply to the node; None where it does."""

    @abstractmethod
    def rewrite(self, node: ir.Node, editor: Editor) -> None:
        """Edit the graph around the node."""

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any node was rewritten."""
        editor = Editor(model.graph)
        modified = False
        for node in list(model.graph):
            if node.op_type not in self.op_types or node.domain not in DEFAULT_DOMAINS:
                continue
            if node.graph is not model.graph:
                continue  # an earlier rewrite has removed it
            reason = self.refusal(node)
            if reason is None:
                self.rewrite(node, editor)
                modified = True
            else:
                logger.debug("%s: '%s' left alone: %s", type(self).__name__, node.name, reason)
        return PassResult(model, modified)


Observer = Callable[[GraphPass, ir.Model], None]
"""Called with each pass that has changed the model."""

_MOST_ROUNDS = 200


class PassRunner:
    """Runs passes, collects their notes, and shows each change to an observer.

    Args:
        observer: called after every pass that changed the model.

    Attributes:
        notes: of the passes, in order.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.notes: list[str] = []
        self._observer = observer

    def run(self, model: ir.Model, passes: Sequence[GraphPass]) -> tuple[ir.Model, bool]:
        """The model after all passes, once each, and whether any changed it."""
        modified = False
        for graph_pass in passes:
            result = graph_pass(model)
            model = result.model
            self.notes.extend(result.notes)
            modified |= result.modified
            if result.modified and self._observer is not None:
                self._observer(graph_pass, model)
        return model, modified

    def settle(self, model: ir.Model, passes: Sequence[GraphPass]) -> ir.Model:
        """The model after repeating the passes until none changes it."""
        for _ in range(_MOST_ROUNDS):
            model, modified = self.run(model, passes)
            if not modified:
                break
        return model
