"""Convolutions in ONNX Runtime's blocked layout, forward and for dL/dx.

Inference sessions run constant-weight convolutions in the internal domain
``com.microsoft.nchwc``: channels in blocks as wide as a vector register. Weights that are
graph inputs lose that, and the engine's ConvGrad never has it. Here the blocked weights are
made in the graph, so that both directions get the fast kernels. With stride 1,

    dL/dx = conv(G, W flipped in height and width and transposed in its channels)

with k - 1 - p zeros instead of p on each side.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.engine.builder import Attribute, Builder, Writer
from onnxq.engine.form import Form
from onnxq.graph.editor import Names
from onnxq.runtime.session import open_session

BLOCKED = "com.microsoft.nchwc"
BLOCK_SIZES = (16, 8)
"""Channels per block: 16 with AVX-512, 8 with AVX."""
OPSET = 13
_errors = ort.capi._pybind_state
UNKNOWN_DOMAIN = (_errors.Fail, _errors.InvalidGraph, _errors.NotImplemented)

logger = logging.getLogger(__name__)


def block_for(form: Form) -> int | None:
    """Channels per block for a Conv that the blocked kernels take; None for any other.

    Where the data needs no gradient, as in a first layer, the plain kernels are as good.
    """
    block = block_size()
    return block if block is not None and 0 in form.wanted and _fits(form, block) else None


def _fits(form: Form, block: int) -> bool:
    shape = form.shape(1)
    if shape is None or len(shape) != 4 or form.text("auto_pad", "NOTSET") != "NOTSET":
        return False
    plain = form.integer("group", 1) == 1 and shape[1] % block == 0
    takes = shape[0] % block == 0 and (plain or _is_depthwise(form))
    top, left, bottom, right = _pads(form)
    narrow = max(top, bottom) < shape[2] and max(left, right) < shape[3]
    return takes and narrow and set(form.integers("dilations", [])) <= {1}


def _is_depthwise(form: Form) -> bool:
    shape = form.shape(1) or (0, 0)
    return shape[1] == 1 and form.integer("group", 1) == shape[0]


def _pads(form: Form) -> list[int]:
    return form.integers("pads", [0, 0, 0, 0])


def _attributes(form: Form, pads: list[int]) -> dict[str, Attribute]:
    return {
        "kernel_shape": list(form.shape(1) or ())[2:],
        "strides": form.integers("strides", [1, 1]),
        "dilations": [1, 1],
        "group": form.integer("group", 1),
        "pads": pads,
    }


_Plan = tuple[list[int], list[int], list[int]]
"""Shape to split weights into blocks, order of its axes in memory, shape afterwards."""


def _block_plan(outputs: int, inputs: int, kernel: list[int], block: int) -> _Plan:
    """How (out, in / group, kh, kw) weights become blocked ones."""
    if inputs == 1:
        return [outputs // block, block, *kernel], [0, 2, 3, 1], [outputs, 1, *kernel]
    parts = [outputs // block, block, inputs // block, block, *kernel]
    return parts, [0, 2, 4, 5, 3, 1], [outputs, inputs, *kernel]


def forward(form: Form, b: Builder, block: int) -> ir.Value:
    """The convolution in the blocked layout, from and to the ordinary one."""
    outputs, depth, *kernel = form.shape(1) or ()
    weights = _blocks(b, b.input(1), _block_plan(outputs, depth, kernel, block))
    data = b.op("ReorderInput", b.input(0), domain=BLOCKED)
    bias = [b.input(2)] if form.has(2) else []
    attributes = _attributes(form, _pads(form))
    result = b.op("Conv", data, weights, *bias, domain=BLOCKED, attributes=attributes)
    return b.op("ReorderOutput", result, domain=BLOCKED, channels=outputs)


def _blocks(b: Builder, weights: ir.Value, plan: _Plan) -> ir.Value:
    parts, order, whole = plan
    return b.op("Reshape", b.op("Transpose", b.op("Reshape", weights, parts), perm=order), whole)


def data_gradient(form: Form, b: Builder, block: int) -> ir.Value:
    """DL/dx of a convolution with stride 1, by the equation at the head of this module."""
    outputs, depth, *kernel = form.shape(1) or ()
    weights, inputs = b.input(1), 1
    if kernel != [1, 1]:
        weights = b.op("Slice", weights, [-1, -1], [-1000, -1000], [2, 3], [-1, -1])
    if not _is_depthwise(form):
        weights = b.op("Transpose", weights, perm=[1, 0, 2, 3])
        outputs, inputs = depth, outputs
    blocks = _blocks(b, weights, _block_plan(outputs, inputs, kernel, block))
    top, left, bottom, right = _pads(form)
    height, width = (size - 1 for size in kernel)
    attributes = _attributes(form, [height - top, width - left, height - bottom, width - right])
    gradient = b.op("ReorderInput", b.gradient(), domain=BLOCKED)
    result = b.op("Conv", gradient, blocks, domain=BLOCKED, attributes=attributes)
    return b.op("ReorderOutput", result, domain=BLOCKED, channels=outputs)


@cache
def block_size() -> int | None:
    """The block that this machine's kernels expect, found by trial; None without such kernels."""
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
    writer = Writer(OPSET, Names(("x", "w")))
    y = conv.outputs[0]
    if block is not None:
        y = forward(Form(conv, frozenset(), OPSET), Builder(writer, conv, [None]), block)
    nodes = [conv] if block is None else writer.tape.nodes
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
