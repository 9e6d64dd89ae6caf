"""The operators whose gradient onnxq defines itself; everything else is the builder's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir import tape

from onnxq.learn.engine.definition import Definition
from onnxq.learn.engine.form import Form


@dataclass(frozen=True)
class Rule:
    """How one operator is differentiated.

    Args:
        define: writes the gradient of one form of the operator.
        refuse: says in a few words why a form has no gradient; None where it has one.
        forward: writes other nodes that compute the same, given the operator's inputs;
            None keeps the operator.
    """

    define: Callable[[Form, Definition], None]
    refuse: Callable[[Form], str | None] = lambda form: None
    forward: Callable[[Form, tape.Tape, list[ir.Value | None]], ir.Value] | None = None
