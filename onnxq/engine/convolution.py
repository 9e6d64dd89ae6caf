"""Convolutions in ONNX Runtime's blocked layout, forward and for dL/dx.

Inference sessions run constant-weight convolutions in the internal domain ``com.microsoft.nchwc``:
channels in blocks as wide as a vector register. Weights that are graph inputs don't get that
layout, and the engine's ConvGrad never does. Here the graph itself blocks the weights, so that both
directions get the fast kernels. With stride 1,

    dL/dx = conv(G, W flipped in height and width and transposed in its channels)

with k - 1 - p zeros instead of p on each side.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx_ir import tape
from onnxruntime.capi import _pybind_state

from onnxq.engine.definition import MICROSOFT, Attribute, Definition, Form, Rule
from onnxq.runtime.session import open_session

BLOCKED = "com.microsoft.nchwc"
BLOCK_SIZES = (16, 8)
"""Channels per block: 16 with AVX-512, 8 with AVX."""
OPSET = 13
UNKNOWN_DOMAIN = (
    _pybind_state.Fail,
    _pybind_state.InvalidGraph,
    _pybind_state.NotImplemented,
)

logger = logging.getLogger(__name__)


def blocked_convolution(form: Form) -> Rule | None:
    """The rule for a Conv that the blocked kernels support; None for any other.

    Where the data need no gradient, as in a first layer, ConvGrad alone is as good, and the builder
    would drop its second output (see ``gradient_graph.py``).
    """
    block = block_size()
    if block is None or 0 not in form.wanted or not _fits(form, block):
        return None
    return Rule(
        lambda form, definition: _define(form, definition, block),
        forward=lambda form, body, inputs: _forward(form, body, inputs, block),
    )


def _fits(form: Form, block: int) -> bool:
    shape = form.shape(1)
    attributes = form.node.attributes
    if shape is None or len(shape) != 4 or attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    plain = attributes.get_int("group", 1) == 1 and shape[1] % block == 0
    blocked = shape[0] % block == 0 and (plain or _is_depthwise(form))
    top, left, bottom, right = _pads(form)
    narrow = max(top, bottom) < shape[2] and max(left, right) < shape[3]
    return blocked and narrow and set(attributes.get_ints("dilations", [])) <= {1}


def _is_depthwise(form: Form) -> bool:
    shape = form.shape(1) or (0, 0)
    return shape[1] == 1 and form.node.attributes.get_int("group", 1) == shape[0]


def _pads(form: Form) -> list[int]:
    return list(form.node.attributes.get_ints("pads", [0, 0, 0, 0]))


def _attributes(form: Form, pads: list[int]) -> dict[str, Attribute]:
    return {
        "kernel_shape": list(form.shape(1) or ())[2:],
        "strides": list(form.node.attributes.get_ints("strides", [1, 1])),
        "dilations": [1, 1],
        "group": form.node.attributes.get_int("group", 1),
        "pads": pads,
    }


_Plan = tuple[list[int], list[int], list[int]]
"""Shape to split weights into blocks, order of its axes in memory, shape afterwards."""


def _block_plan(outputs: int, inputs: int, kernel: list[int], block: int) -> _Plan:
    """How weights (out, in / group, kh, kw) are blocked."""
    if inputs == 1:
        return [outputs // block, block, *kernel], [0, 2, 3, 1], [outputs, 1, *kernel]
    parts = [outputs // block, block, inputs // block, block, *kernel]
    return parts, [0, 2, 4, 5, 3, 1], [outputs, inputs, *kernel]


def _forward(form: Form, body: tape.Tape, inputs: list[ir.Value | None], block: int) -> ir.Value:
    """The convolution in the blocked layout, converted from and to the ordinary one."""
    outputs, depth, *kernel = form.shape(1) or ()
    parts, order, whole = _block_plan(outputs, depth, kernel, block)

    def reshape(value: ir.Value | None, shape: list[int]) -> ir.Value:
        constant = {"value": ir.tensor(np.array(shape, np.int64))}
        return body.op("Reshape", [value, body.op("Constant", [], constant)])

    blocks = body.op("Transpose", [reshape(inputs[1], parts)], {"perm": order})
    data = body.op("ReorderInput", [inputs[0]], domain=BLOCKED)
    bias = [inputs[2]] if form.has(2) else []
    attributes = _attributes(form, _pads(form))
    result = body.op("Conv", [data, reshape(blocks, whole), *bias], attributes, domain=BLOCKED)
    return body.op("ReorderOutput", [result], {"channels": outputs}, domain=BLOCKED)


def _define(form: Form, d: Definition, block: int) -> None:
    """DW and, with a stride, dx by ConvGrad; db = sum G; dx blocked where the stride is 1."""
    attributes = _attributes(form, _pads(form))
    x, weights = d.input(0), d.input(1)
    dx, dw = d.ops(2, "ConvGrad", d.gradient(), x, weights, domain=MICROSOFT, attributes=attributes)
    d.result(0, _blocked_dx(form, d, block) if attributes["strides"] == [1, 1] else dx)
    d.result(1, dw)
    if form.has(2):
        d.result(2, d.reduce("ReduceSum", d.gradient(), [0, 2, 3]))


def _blocked_dx(form: Form, d: Definition, block: int) -> str:
    outputs, depth, *kernel = form.shape(1) or ()
    weights = d.input(1)
    if kernel != [1, 1]:
        back, far, axes = (d.integers(v) for v in ([-1, -1], [-1000, -1000], [2, 3]))
        weights = d.op("Slice", weights, back, far, axes, back)
    inputs = outputs
    if not _is_depthwise(form):
        weights = d.op("Transpose", weights, perm=[1, 0, 2, 3])
        outputs, inputs = depth, outputs
    else:
        inputs = 1
    parts, order, whole = _block_plan(outputs, inputs, kernel, block)
    blocks = d.op("Transpose", d.op("Reshape", weights, d.integers(parts)), perm=order)
    blocks = d.op("Reshape", blocks, d.integers(whole))
    top, left, bottom, right = _pads(form)
    height, width = (size - 1 for size in kernel)
    pads = [height - top, width - left, height - bottom, width - right]
    gradient = d.op("ReorderInput", d.gradient(), domain=BLOCKED)
    attributes = _attributes(form, pads)
    result = d.op("Conv", gradient, blocks, domain=BLOCKED, attributes=attributes)
    return d.op("ReorderOutput", result, domain=BLOCKED, channels=outputs)


@cache
def block_size() -> int | None:
    """The block size of this machine's kernels, found by trial; None without such kernels."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 32, 5, 5)).astype(np.float32)
    weights = random.normal(size=(32, 32, 3, 3)).astype(np.float32)
    expected = _run_trial(x, weights, None)
    for block in BLOCK_SIZES:
        found = _run_trial(x, weights, block)
        if (
            found is not None
            and expected is not None
            and np.allclose(found, expected, rtol=1e-3, atol=1e-3)
        ):
            return block
    return None


def _run_trial(x: np.ndarray, weights: np.ndarray, block: int | None) -> np.ndarray | None:
    """A convolution, plain or blocked; None where blocked kernels don't exist."""
    inputs = [ir.val(n, ir.DataType.FLOAT, v.shape) for n, v in (("x", x), ("w", weights))]
    conv = ir.node("Conv", inputs, {"pads": [1, 1, 1, 1]})
    body = tape.Tape()
    if block is None:
        y, nodes = conv.outputs[0], [conv]
    else:
        y = _forward(Form(conv, frozenset(), OPSET), body, list(inputs), block)
        nodes = list(body.nodes)
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    domains = {"": OPSET, BLOCKED: 1} if block else {"": OPSET}
    graph = ir.Graph(inputs, [y], nodes=nodes, opset_imports=domains, name="trial")
    try:
        session = open_session(ir.Model(graph, ir_version=8))
    except UNKNOWN_DOMAIN as error:
        logger.debug("no blocked convolutions on this machine: %s", error)
        return None
    found: np.ndarray = session.run(["y"], {"x": x, "w": weights})[0]
    return found
