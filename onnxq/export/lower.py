"""Lower the student to QuantizeLinear and DequantizeLinear nodes with constant parameters.

There is one QuantizeLinear per tensor. Data-movement operators work on the quantized tensor, and
every other reader reads a DequantizeLinear. ONNX Runtime then fuses DQ -> operator -> Q into
integer kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.export.constants import CODES, SCALE, add_constant
from onnxq.export.weights import lower_weights
from onnxq.graph.facts import nested_nodes
from onnxq.graph.fake_quant import DOMAIN, parse_function_name
from onnxq.numerics.qparams import quant_max
from onnxq.plan.spec import CODE_BITS, Plan, TensorSpec
from onnxq.student.qparams import QParams, limit_names, tensor_qparams
from onnxq.student.student import Student

WIDE = ".wide"
"""Suffix of an integer tensor before it is clipped to less than 8 bits."""


@dataclass
class Codes:
    """The quantized form of a tensor: integers, their parameters, and the float value if any."""

    value: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    name: str
    real: ir.Value | None = None


class Lowering:
    """Lowers a copy of the student's graph.

    Args:
        student: the student.
        qparams: the quantization parameters to write.
    """

    def __init__(self, student: Student, qparams: QParams) -> None:
        self.model = student.model.clone(deep_copy=False)
        self._graph = self.model.graph
        self._student = student
        self._qparams = qparams
        self._codes: dict[ir.Value, Codes] = {}
        self._specs = _specs_by_node(student.plan)

    def run(self) -> ir.Model:
        """The deployable model, without functions and parameter inputs."""
        for node in list(self._graph):
            self._lower(node)
        for i, output in enumerate(self._graph.outputs):
            if output in self._codes:
                self._graph.outputs[i] = self._dequantized(self._codes[output])
        lower_weights(self.model, self._student, self._qparams)
        self._drop_functions()
        self._graph.sort()
        return self.model

    def _lower(self, node: ir.Node) -> None:
        if node.domain == DOMAIN and parse_function_name(node.op_type):
            self._quantize(node)
        elif self._moves_codes(node):
            self._move(node)
        else:
            for reader in (node, *nested_nodes(node)):
                self._read_floats(reader)

    def _read_floats(self, node: ir.Node) -> None:
        for i, value in enumerate(node.inputs):
            if value in self._codes:
                node.replace_input_with(i, self._dequantized(self._codes[value]))

    def _quantize(self, node: ir.Node) -> None:
        spec, source, result = self._specs[str(node.name)], node.inputs[0], node.outputs[0]
        assert source is not None
        if source in self._codes:
            source = self._dequantized(self._codes[source])
        scale, zero_point = tensor_qparams(spec, self._qparams.ranges[spec.name])
        scale_value = add_constant(
            self._graph, f"{spec.name}{SCALE}", np.asarray(scale, np.float32)
        )
        zero_value = add_constant(
            self._graph, f"{spec.name}.zero_point", np.asarray(zero_point, np.uint8)
        )
        quantize = ir.node(
            "QuantizeLinear", [source, scale_value, zero_value], name=f"{spec.name}.q"
        )
        codes = quantize.outputs[0]
        codes.name, codes.shape = spec.name + CODES, result.shape
        codes.type = ir.TensorType(ir.DataType.UINT8)
        self._graph.insert_before(node, quantize)
        # QuantizeLinear clips to 8 bits by itself.
        if spec.num_bits < CODE_BITS:
            codes = self._clip(codes, spec, node)
        self._codes[result] = Codes(codes, scale_value, zero_value, str(result.name))
        for name in limit_names(spec):
            self._remove_input(name)

    def _clip(self, wide: ir.Value, spec: TensorSpec, before: ir.Node) -> ir.Value:
        """The quantized values clipped to 0 ... 2^n - 1: a float Clip would stay in float."""
        names = (f"codes.{code}" for code in (0, quant_max(spec.num_bits)))
        bounds = [self._shared_code(name) for name in names]
        clip = ir.node("Clip", [wide, *bounds], name=f"{spec.name}.clip")
        codes = clip.outputs[0]
        wide.name, codes.name = spec.name + WIDE, spec.name + CODES
        codes.type, codes.shape = wide.type, wide.shape
        self._graph.insert_before(before, clip)
        return codes

    def _shared_code(self, name: str) -> ir.Value:
        known = self._graph.initializers.get(name)
        code = np.asarray(name.rpartition(".")[2], np.uint8)
        return known if known is not None else add_constant(self._graph, name, code)

    def _moves_codes(self, node: ir.Node) -> bool:
        return node.name in self._student.plan.moves and node.inputs[0] in self._codes

    def _move(self, node: ir.Node) -> None:
        source = node.inputs[0]
        assert source is not None
        codes = self._codes[source]
        node.replace_input_with(0, codes.value)
        if node.op_type == "Pad":
            self._pad_with_zero_point(node, codes)
        for output in node.outputs:
            name = str(output.name)
            output.name = name + CODES
            output.type = ir.TensorType(ir.DataType.UINT8)
            self._codes[output] = Codes(output, codes.scale, codes.zero_point, name)

    def _pad_with_zero_point(self, node: ir.Node, codes: Codes) -> None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, codes.zero_point)

    def _dequantized(self, codes: Codes) -> ir.Value:
        if codes.real is None:
            inputs = [codes.value, codes.scale, codes.zero_point]
            node = ir.node("DequantizeLinear", inputs, name=f"{codes.name}.dq")
            codes.real = node.outputs[0]
            codes.real.name, codes.real.shape = codes.name, codes.value.shape
            codes.real.type = ir.TensorType(ir.DataType.FLOAT)
            producer = codes.value.producer()
            assert producer is not None
            self._graph.insert_after(producer, node)
        return codes.real

    def _remove_input(self, name: str) -> None:
        for value in list(self._graph.inputs):
            if value.name == name:
                self._graph.inputs.remove(value)

    def _drop_functions(self) -> None:
        for node in [n for n in self._graph if n.domain == DOMAIN]:
            for output in node.outputs:
                output.name = f"{node.name}.lowered"
            self._graph.remove(node, safe=True)
        self.model.functions.clear()
        self._graph.opset_imports.pop(DOMAIN, None)


def _specs_by_node(plan: Plan) -> dict[str, TensorSpec]:
    return {f"{spec.name}.fake_quant": spec for spec in plan.tensors.values()}
