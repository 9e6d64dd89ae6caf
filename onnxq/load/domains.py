"""Operator domains under one spelling, each imported once, as ONNX Runtime reads them."""

from __future__ import annotations

import onnx

from onnxq.load.limits import DEFAULT_DOMAINS, all_nodes, nested_nodes
from onnxq.load.version import MAX_OPSET

ML_DOMAIN = "ai.onnx.ml"

NEWEST = {"": MAX_OPSET, ML_DOMAIN: 5, "com.microsoft": 1}
"""The version that ONNX Runtime takes of a domain which a model uses and doesn't import."""


def unify_domains(model: onnx.ModelProto) -> None:
    """Spell ONNX's own domain "", keep one import for each domain, add those missing; in place.

    ONNX Runtime takes "ai.onnx" and "" for the same, and of several imports of a domain the last.
    """
    for node in all_nodes(model):
        node.domain = _spelt(node.domain)
    used = {node.domain for node in nested_nodes(model.graph.node)}
    _unify_imports(model, used)
    for function in model.functions:
        function.domain = _spelt(function.domain)
        _unify_imports(function, set())


def _spelt(domain: str) -> str:
    return "" if domain in DEFAULT_DOMAINS else domain


def _unify_imports(holder: onnx.ModelProto | onnx.FunctionProto, used: set[str]) -> None:
    versions = {_spelt(each.domain): each.version for each in holder.opset_import}
    missing = {domain: NEWEST[domain] for domain in sorted(used & NEWEST.keys() - versions.keys())}
    del holder.opset_import[:]
    for domain, version in {**versions, **missing}.items():
        holder.opset_import.append(onnx.helper.make_opsetid(domain, version))
