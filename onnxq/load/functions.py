"""Model-local functions, put in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx import inliner
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


def inline_functions(model: ir.Model, name: str) -> tuple[ir.Model, bool]:
    """The model without functions, and whether any of them had to be converted to its opset.

    Args:
        model: it must not be used afterwards.
        name: the file's name, for the error.

    Raises:
        ModelError: functions call each other in a circle, or can't be converted.
    """
    if not model.functions:
        return model, False
    common.OutputFixPass()(model)  # a function that hands an input on has no value to rename
    inline = common.InlinePass()
    try:
        inline.requires(model)
        for function in model.functions.values():
            _take_over_opset(function, model.opset_imports)
        convert = any(_is_foreign(each, model.opset_imports) for each in model.functions.values())
        if convert:
            proto = inliner.inline_local_functions(ir.to_proto(model), convert_version=True)
            model = ir.from_proto(proto)
        inline(model)
    except (ValueError, RuntimeError, ir.passes.InvariantError) as error:
        raise ModelError(
            f'The functions of "{name}" can\'t be put in the place of their calls '
            f"({reason_of(error)}); export the model without functions, at one opset."
        ) from error
    common.RemoveUnusedOpsetsPass()(model)
    return model, convert


def _is_foreign(function: ir.Function, versions: dict[str, int]) -> bool:
    """Whether the function is of another opset than the model."""
    return any(
        versions.get(domain, version) != version
        for domain, version in function.opset_imports.items()
    )


def _take_over_opset(function: ir.Function, versions: dict[str, int]) -> None:
    """Bring the function to the model's opset where its operators are the same in both."""
    for domain, version in function.opset_imports.items():
        wanted = versions.get(domain, version)
        own = [node.op_type for node in function.all_nodes() if node.domain == domain]
        if all(_since(each, version, domain) == _since(each, wanted, domain) for each in own):
            function.opset_imports[domain] = wanted


def _since(op_type: str, version: int, domain: str) -> int | None:
    """The opset that brought the form of an operator which a version has."""
    if not onnx.defs.has(op_type, version, domain):
        return None
    return int(onnx.defs.get_schema(op_type, version, domain).since_version)
