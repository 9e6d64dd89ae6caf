"""Running passes one after another, once or until nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxq.normalise.passes import GraphPass

Observer = Callable[[GraphPass, ir.Model], None]
"""Called with each pass that has changed the model."""

_MOST_ROUNDS = 200


class PassRunner:
    """Runs passes, gathers their notes, and shows each change to an observer.

    Args:
        observer: called after every pass that changed the model.

    Attributes:
        notes: what the passes had to say, in the order in which they said it.
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
        """The model after as many rounds of the passes as it takes to change nothing."""
        for _ in range(_MOST_ROUNDS):
            model, modified = self.run(model, passes)
            if not modified:
                break
        return model
