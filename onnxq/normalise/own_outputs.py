"""Constants that the graph returns are kept apart from those that nodes read."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.normalise.editor import Editor
from onnxq.normalise.facts import constant
from onnxq.normalise.passes import PassResult


class OwnOutputs:
    """Gives nodes a copy of each constant that is also a graph output.

    A weight is then quantized as any other, and what the graph returns stays as it was.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether any constant was copied."""
        editor = Editor(model.graph)
        modified = False
        for value in dict.fromkeys(model.graph.outputs):
            array = constant(value)
            if array is None or not value.uses():
                continue
            copy = editor.initializer(f"{value.name}_read", array)
            for reader, index in list(value.uses()):
                reader.replace_input_with(index, copy)
            modified = True
        return PassResult(model, modified)
