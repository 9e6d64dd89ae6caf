"""Model-local functions, put in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ModelError, reason_of
from onnxq.load.limits import nested_nodes

Identifier = tuple[str, str, str]
"""Domain, name and overload of a function, or of the operator that a node calls."""


def drop_idle_functions(model: onnx.ModelProto) -> None:
    """Remove the functions that nothing calls and those named like an operator; in place.

    ONNX Runtime runs its operator where a function has the name of one.

    Args:
        model: domains are spelt as `unify_domains` spells them.
    """
    versions = {each.domain: each.version for each in model.opset_import}
    functions = {
        _identifier(each, each.name): each
        for each in model.functions
        if not onnx.defs.has(each.name, versions.get(each.domain, 0), each.domain)
    }
    called: set[Identifier] = set()
    waiting = _calls(model.graph.node)
    while waiting:
        identifier = waiting.pop()
        if identifier in functions and identifier not in called:
            called.add(identifier)
            waiting += _calls(functions[identifier].node)
    kept = [each for identifier, each in functions.items() if identifier in called]
    del model.functions[:]
    model.functions.extend(kept)


def _identifier(each: onnx.NodeProto | onnx.FunctionProto, name: str) -> Identifier:
    return each.domain, name, each.overload


def _calls(nodes: Iterable[onnx.NodeProto]) -> list[Identifier]:
    return [_identifier(node, node.op_type) for node in nested_nodes(nodes)]


def inline_functions(model: ir.Model, name: str) -> None:
    """Put the functions' nodes in the place of the calls, in place.

    A body of another opset is read at the model's, as ONNX Runtime reads it.

    Args:
        model: the model.
        name: the file's name, for the error.

    Raises:
        ModelError: functions call each other in a circle, or can't be inlined.
    """
    if not model.functions:
        return
    common.OutputFixPass()(model)  # a function that hands an input on has no value to rename
    for function in model.functions.values():
        function.opset_imports.update(
            {each: model.opset_imports[each] for each in _shared_domains(function, model)}
        )
    try:
        common.InlinePass()(model)
    except (ValueError, RuntimeError, ir.passes.InvariantError) as error:
        raise ModelError(
            f'The functions of "{name}" can\'t be put in the place of their calls '
            f"({reason_of(error)}); export the model without functions."
        ) from error
    common.RemoveUnusedOpsetsPass()(model)


def _shared_domains(function: ir.Function, model: ir.Model) -> list[str]:
    return [domain for domain in function.opset_imports if domain in model.opset_imports]
