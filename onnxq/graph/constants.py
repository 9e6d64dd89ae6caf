"""What the constants of a graph hold."""

from __future__ import annotations

import onnx_ir as ir


def scalar(value: ir.Value | None, absent: float | None = None) -> float | None:
    """The number that a parameter holds, be its shape () or (1,): ONNX Runtime takes both.

    Args:
        value: a parameter of an operator, as the limits of a Clip are.
        absent: what stands for a parameter that isn't there.

    Returns:
        The number; None where it is computed, or there are several.
    """
    if value is None:
        return absent
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or len(tensor.shape) > 1:
        return None
    return float(tensor.numpy().reshape(()))
