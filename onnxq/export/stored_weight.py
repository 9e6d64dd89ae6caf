"""One integer weight in the file, and how each layer that shares it reads it.

- Integer kernels read the integers through DequantizeLinear.
- Weight-only layers read `Cast(integers) * scale`, which ONNX Runtime folds into a float constant
  at session start (it doesn't fold DequantizeLinear).
- A codebook replaces the integers. Integers of less than 8 bits are packed as a codebook of all
  their values: see `lookup`. For accelerators with INT4 tensors, integers of 4 bits or fewer are
  one of those.

A layer that multiplies the weight by its own factor has the factor in the scale, with its sign. A
Gather looks rows up among the integers and dequantizes the rows that it found: ONNX Runtime would
dequantize the whole table in every run, or keep a float copy of it. A packed table, or one with a
codebook, is unpacked by rows too, unless other layers read it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.export.lookup import INTEGERS, PackedTable, add_lookup
from onnxq.graph.editor import add_initializer
from onnxq.graph.operators import TABLE, weight_index
from onnxq.numerics.codebook import Codebook, uniform_codebook
from onnxq.numerics.quantizers import FloatArray, per_channel, quantize_weight
from onnxq.plan.spec import LayerSpec
from onnxq.student.qparams import QParams, layer_scale

SCALE = ".scale"
"""Suffix of the scale of integers."""
REAL = ".real"
"""Suffix of a weight or bias as the layer reads it."""


class StoredWeight:
    """The integers of a weight, in a graph.

    Args:
        graph: the exported graph.
        spec: of the layer that decides the form: one on an integer kernel, if there is one.
        qparams: the quantization parameters to write.
        scale: of the weight, float32 (channels,) or ().
    """

    def __init__(
        self, graph: ir.Graph, spec: LayerSpec, qparams: QParams, scale: FloatArray
    ) -> None:
        self._graph, self._spec, self._qparams, self.scale = graph, spec, qparams, scale
        self._rank = qparams.weights[spec.weight].ndim
        self._type = ir.DataType.INT4 if spec.int4 else ir.DataType.INT8
        # Cast doesn't take INT4.
        self._integer = spec.compute == "integer" or spec.int4
        self._scaled = spec.has_scale(integer=self._integer)
        self._scales: dict[str, ir.Value] = {}
        self._shared: dict[str, ir.Value] = {}
        self._table: PackedTable | None = None
        self._stored = self._store()

    def _store(self) -> ir.Value:
        spec, name = self._spec, self._spec.weight
        if spec.codebook is not None:
            return self._look_up(self._qparams.codebooks[name])
        weight = self._qparams.weights[name]
        integers = quantize_weight(weight, self.scale, spec.num_bits, spec.axis)
        if spec.packed:
            return self._look_up(uniform_codebook(integers, spec.num_bits, self.scale))
        return add_initializer(
            self._graph, f"{name}{INTEGERS}", integers.astype(self._type.numpy())
        )

    def _look_up(self, codebook: Codebook) -> ir.Value:
        """The weight, or the packed rows of a table that nothing else reads."""
        if self._spec.rows == 1:
            return add_lookup(self._graph, self._spec.weight, codebook)
        self._table = PackedTable(self._graph, self._spec.weight, codebook)
        return self._table.packed

    def connect(self, node: ir.Node, spec: LayerSpec) -> None:
        """Connect a layer that reads the weight in its own way; `replace` connects the others."""
        integer = spec.codebook is None or self._integer
        if spec.op_type == TABLE and (integer or self._table is not None):
            self._look_rows_up(node)
        elif spec.factor is not None:
            self._read_under_factor(node, spec)

    def replace(self, value: ir.Value) -> None:
        """Connect all other readers of the student's weight input to the weight as floats."""
        if value.uses() or value.is_graph_output():
            real = self._real(self._spec.weight, self._spec.weight, self.scale)
            replace_input(self._graph, value, real)
        else:
            self._graph.inputs.remove(value)

    def scale_value(self, spec: LayerSpec) -> ir.Value:
        """The scale of the weight for a layer on an integer kernel."""
        owner = spec.weight if spec.factor is None else _name_of(spec)
        return self._scales[owner]

    def _read_under_factor(self, node: ir.Node, spec: LayerSpec) -> None:
        product = node.inputs[1]
        assert product is not None
        multiply = product.producer()
        assert multiply is not None
        scale = layer_scale(spec, self._qparams, self.scale)
        real = self._real(_name_of(spec), spec.weight, scale, spec)
        real.name, real.type, real.shape = f"{_name_of(spec)}{REAL}", product.type, product.shape
        node.replace_input_with(1, real)
        self._graph.remove(multiply, safe=True)
        factor = self._graph.initializers.get(str(spec.factor))
        if factor is not None and not factor.uses():
            del self._graph.initializers[str(spec.factor)]

    def _real(
        self, owner: str, name: str, scale: FloatArray, layer: LayerSpec | None = None
    ) -> ir.Value:
        """The weight as floats, under the scale of a layer or of the weight itself."""
        axis = self._spec.axis if layer is None or not scale.ndim else layer.channel_axis
        if self._integer:
            value = self._scales[owner] = add_initializer(self._graph, f"{owner}{SCALE}", scale)
            return dequantize(self._graph, [self._stored, value, self._zero(scale)], axis, owner)
        if not self._scaled and layer is None:
            return self._stored
        if not self._scaled and layer is not None:
            scale = self._qparams.factors[layer.name]
        shaped = per_channel(scale, self._rank, axis)
        value = add_initializer(self._graph, f"{owner}{SCALE}", shaped)
        product = ir.node("Mul", [self._unscaled(name), value], name=f"{owner}.rescale")
        self._graph.insert_before(self._graph[0], product)
        return product.outputs[0]

    def _zero(self, scale: FloatArray) -> ir.Value:
        """The zero points of a scale; scales of equal shape share one constant."""
        key = f"{self._spec.weight}.zero_point" + ("" if scale.ndim == self.scale.ndim else "s")
        if key not in self._shared:
            zeros = np.zeros(scale.shape, self._type.numpy())
            self._shared[key] = add_initializer(self._graph, key, zeros)
        return self._shared[key]

    def _unscaled(self, name: str) -> ir.Value:
        """The integers as floats; a table of float centroids is float already."""
        if self._spec.codebook is not None:
            return self._stored
        if name not in self._shared:
            cast = ir.node("Cast", [self._stored], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
            cast.outputs[0].name = f"{name}.unscaled"
            self._graph.insert_before(self._graph[0], cast)
            self._shared[name] = cast.outputs[0]
        return self._shared[name]

    def _look_rows_up(self, node: ir.Node) -> None:
        """Rows of integers, converted to float, times their scales, which are looked up as well."""
        index = weight_index(TABLE)
        indices, result, name = node.inputs[1 - index], node.outputs[0], str(node.name)
        assert indices is not None
        node.replace_input_with(index, self._stored)
        rows = ir.val(f"{name}.rows", ir.DataType.UINT8 if self._table else ir.DataType.INT8)
        made = self._as_floats(rows, name)
        if self._scaled:
            made += self._times_scale(made[-1].outputs[0], indices, name)
        real = made[-1].outputs[0]
        real.type, real.shape = result.type, result.shape
        result.replace_all_uses_with(real, replace_graph_outputs=True)
        rows.replace_all_uses_with(result)
        real.name, result.name, result.type, result.shape = result.name, rows.name, rows.type, None
        self._graph.insert_after(node, made)

    def _as_floats(self, rows: ir.Value, name: str) -> list[ir.Node]:
        """New nodes that convert rows to float."""
        if self._table is not None:
            return self._table.unpack(rows, name)
        cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
        cast.outputs[0].name = f"{name}.unscaled"
        return [cast]

    def _times_scale(self, rows: ir.Value, indices: ir.Value, name: str) -> list[ir.Node]:
        """New nodes that multiply rows by their scales."""
        made, scale = list[ir.Node](), self._table_scale()
        if self.scale.ndim:
            made = [ir.node("Gather", [scale, indices], {"axis": 0}, name=f"{name}.scales")]
            scale = made[0].outputs[0]
            scale.name = f"{name}.rows{SCALE}"
        return [*made, ir.node("Mul", [rows, scale], name=f"{name}.rescale")]

    def _table_scale(self) -> ir.Value:
        """The scales of the rows, (rows, 1), or the table's one scale."""
        name = f"{self._spec.weight}.by_row"
        if name not in self._shared:
            shaped = per_channel(self.scale, self._rank, 0 if self.scale.ndim else None)
            self._shared[name] = add_initializer(self._graph, f"{name}{SCALE}", shaped)
        return self._shared[name]


def _name_of(spec: LayerSpec) -> str:
    """The prefix of the names of a layer's own constants for a shared weight."""
    return f"{spec.name}.weight"


def dequantize(graph: ir.Graph, inputs: list[ir.Value], axis: int | None, name: str) -> ir.Value:
    """The output of a new DequantizeLinear at the head of the graph."""
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dq")
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def replace_input(graph: ir.Graph, value: ir.Value, real: ir.Value) -> None:
    """Connect the readers of a graph input to another value, and remove the input."""
    real.name = f"{value.name}{REAL}"
    real.type, real.shape = value.type, value.shape
    value.replace_all_uses_with(real)
    graph.inputs.remove(value)
