"""Whether the training build's gradient kernels are right, and faster than standard operators.

    python benchmarks/gradient_kernels.py [OPERATOR ...]

One operator at a time, in shapes of real models, with either rule, in turns. Milliseconds are CPU
time of a step on one core, forward and backward pass together. Needs the training build.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine
from onnxq.engine.builder import Builder
from onnxq.engine.form import Form, Gradients
from onnxq.engine.kernels import MICROSOFT
from onnxq.engine.rules import RULES

ROUNDS = 15


def softmax(form: Form, b: Builder) -> Gradients:
    """By SoftmaxGrad."""
    axis = form.integer("axis", -1)
    inputs = b.gradient(), b.output()
    return {0: b.op("SoftmaxGrad_13", *inputs, domain=MICROSOFT, axis=axis)}


def layer_normalization(form: Form, b: Builder) -> Gradients:
    """By LayerNormalizationGrad, which reads the statistics of the forward pass."""
    inputs = b.gradient(), b.input(0), b.input(1), b.optional_output(1), b.optional_output(2)
    attributes = {"axis": form.integer("axis", -1)}
    found = b.ops(
        [True] * 3, "LayerNormalizationGrad", *inputs, domain=MICROSOFT, attributes=attributes
    )
    return dict(enumerate(found))


def max_pool(form: Form, b: Builder) -> Gradients:
    """By MaxPoolGrad, whose kernel takes the shape of x from the graph."""
    given = {name: each.value for name, each in form.node.attributes.items()}
    found = b.op("MaxPoolGrad", b.gradient(), b.optional_output(1), attributes=given)
    found.shape, found.type = b.input().shape, b.input().type
    return {0: found}


@dataclass(frozen=True)
class Case:
    """An operator with its inputs, the first of which are trained, and the rule to try."""

    operator: str
    attributes: str
    inputs: dict[str, tuple[int | str, ...]]
    rule: Callable[[Form, Builder], Gradients]


BATCH = 8
CASES = (
    Case("Softmax", "", {"x": ("N", 12, 128, 128)}, softmax),
    Case("Softmax", "", {"x": ("N", 3, 197, 197)}, softmax),
    Case("Softmax", "", {"x": ("N", 1000)}, softmax),
    Case("Softmax", "<axis=1>", {"x": ("N", 21, 65, 65)}, softmax),
    Case("LayerNormalization", "", {"x": ("N", 128, 768), "s": (768,), "b": (768,)},
         layer_normalization),
    Case("LayerNormalization", "", {"x": ("N", 197, 192), "s": (192,), "b": (192,)},
         layer_normalization),
    Case("LayerNormalization", "", {"x": ("N", 3136, 96), "s": (96,), "b": (96,)},
         layer_normalization),
    Case("MaxPool", "<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>",
         {"x": (BATCH, 64, 112, 112)}, max_pool),
    Case("MaxPool", "<kernel_shape=[2,2], strides=[2,2]>", {"x": (BATCH, 64, 56, 56)}, max_pool),
    Case("MaxPool", "<kernel_shape=[3,3], pads=[1,1,1,1]>", {"x": (BATCH, 128, 28, 28)}, max_pool),
    Case("MaxPool", "<kernel_shape=[2,2], strides=[2,2]>", {"x": ("N", 64, 56, 56)}, max_pool),
)  # fmt: skip


def model_of(case: Case) -> ir.Model:
    """The operator between its inputs and a loss."""
    inputs = [f"float[{','.join(map(str, shape))}] {name}" for name, shape in case.inputs.items()]
    names = ", ".join(case.inputs)
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({", ".join(inputs)}, float k) '
        f"=> (float loss) {{ y = {case.operator}{case.attributes}({names}) "
        "z = Mul(y, y) t = Mul(z, k) loss = ReduceSum<keepdims=0>(t) }"
    )


def compare(case: Case) -> str:
    """One row of the table."""
    model, right = model_of(case), RULES[case.operator]
    random = np.random.default_rng(0)
    shapes = {k: [BATCH if d == "N" else d for d in v] for k, v in case.inputs.items()}
    feeds = {k: random.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    size = "×".join(map(str, case.inputs["x"]))
    row = f"| {case.operator} {case.attributes} | {size} | "
    engines = []
    for write in (right.write, case.rule):
        RULES[case.operator] = replace(right, write=write)  # type: ignore[index]
        try:
            engines.append(Engine(model.clone(), list(feeds), workers=1, kernels="onnx"))
            found = [engine.gradients(feeds, [{"k": np.float32(1)}])[1] for engine in engines]
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            return f"{row}fails: {str(error)[:200]}"
        finally:
            RULES[case.operator] = right  # type: ignore[index]
    apart = max(
        float(np.linalg.norm(found[1][k] - found[0][k]) / np.linalg.norm(found[0][k]))
        for k in feeds
    )
    before, after = measure(engines, feeds)
    return f"{row}{before:.2f} | {after:.2f} | {after / before:.2f} | {apart:.0e} |"


def measure(engines: list[Engine], feeds: dict[str, np.ndarray]) -> list[float]:
    """The median CPU milliseconds of a step of each engine."""
    times: list[list[float]] = [[] for _ in engines]
    for _ in range(ROUNDS):
        for engine, spent in zip(engines, times, strict=True):
            began = time.process_time()
            engine.gradients(feeds, [{"k": np.float32(1)}])
            spent.append(1000 * (time.process_time() - began))
    return [statistics.median(spent) for spent in times]


if __name__ == "__main__":
    print("| operator | x | standard, ms | kernel, ms | ratio | apart |\n|---|---|---|---|---|---|")
    for each in CASES:
        if not sys.argv[1:] or each.operator in sys.argv[1:]:
            print(compare(each), flush=True)
