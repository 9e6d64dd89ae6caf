"""Where the student is compared with the teacher: the float outputs, before softmax."""

from __future__ import annotations

import onnx_ir as ir

_KEEPS_VALUES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")


def find_logits(model: ir.Model) -> list[str]:
    """The names of the tensors that learning matches, one per float output, in order.

    An output that is a softmax or log-softmax is replaced by what enters it (FAT compares
    logits); outputs that are not floats (a class index) are passed over.
    """
    names: dict[str, None] = {}
    for output in model.graph.outputs:
        if output.dtype == ir.DataType.FLOAT:
            names.setdefault(str(_before_softmax(output).name))
    return list(names)


def _before_softmax(output: ir.Value) -> ir.Value:
    value = output
    node = value.producer()
    while node is not None and node.op_type in _KEEPS_VALUES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    if node is None or node.domain or node.op_type not in ("Softmax", "LogSoftmax"):
        return output
    assert node.inputs[0] is not None
    return node.inputs[0]
