"""What a graph pass is, and the base of those that look at one node at a time."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import onnx_ir as ir

from onnxq.load.limits import DEFAULT_DOMAINS
from onnxq.normalise.editor import Editor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassResult:
    """What a pass gives back.

    Attributes:
        model: the model; the same object unless the pass says otherwise.
        modified: whether anything was changed; False on a second run.
        notes: sentences for the user.
    """

    model: ir.Model
    modified: bool
    notes: tuple[str, ...] = ()


class GraphPass(Protocol):
    """Changes a model in place, keeping its outputs and its inputs' and outputs' names."""

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether it was changed."""
        ...


class NodePass(ABC):
    """A pass over the nodes of the main graph; sub-graphs are left as they are.

    The test and the edit are separate: `refusal` says why a node is left alone (logged at
    debug with the node's name) and `rewrite` is called only where it says nothing.
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
