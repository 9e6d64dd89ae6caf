"""The student: the teacher with fake-quantized tensors, and its parameters as graph inputs.

A candidate changes the feed, not the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.cut import between
from onnxq.graph.editor import fix_inputs
from onnxq.numerics.quantizers import (
    FloatArray,
    bias_scale,
    fake_quant_bias,
    smallest_weight_scale,
)
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.runtime.session import Arrays
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    layer_scale,
    needs_bias,
    range_feeds,
    range_inputs,
    start_scale,
)


@dataclass(frozen=True)
class Student:
    """The student graph, and how it is fed.

    Attributes:
        model: the graph; its inputs are the teacher's and the parameters.
        plan: the plan that it was made from.
        sources: by integer layer, the name of the tensor whose quantized values it reads.
    """

    model: ir.Model
    plan: Plan
    sources: dict[str, str]

    def feeds(self, qparams: QParams, wanted: Collection[str] | None = None) -> Arrays:
        """The arrays for the parameter inputs, float32 by name.

        They are the ranges of activations, and the weights and biases after quantization and
        conversion back to float. Biases on integer kernels are rounded to int32.

        Args:
            qparams: the quantization parameters.
            wanted: names of the inputs to compute; None means all.
        """
        feeds = range_feeds(self.plan.tensors.values(), qparams)
        scales = self.weight_scales(qparams)
        for spec in self.plan.layers.values():
            names = {spec.weight, bias_name(spec)} if needs_bias(spec) else {spec.weight}
            if wanted is not None and names.isdisjoint(wanted):
                continue
            if spec.weight not in feeds:
                feeds[spec.weight] = fake_weight(spec, qparams, scales[spec.weight])
            if needs_bias(spec):
                bias = corrected_bias(spec, qparams, feeds[spec.weight])
                if spec.compute == "integer":
                    scale = self.bias_scale(spec, qparams, scales[spec.weight])
                    bias = fake_quant_bias(bias, scale)
                feeds[bias_name(spec)] = bias
        feeds |= self.float_feeds(qparams)
        return feeds if wanted is None else {k: v for k, v in feeds.items() if k in wanted}

    def float_feeds(self, qparams: QParams) -> Arrays:
        """The arrays for the weights and biases of retrained float layers."""
        specs = self.plan.float_layers.values()
        weights = {spec.weight: qparams.weights[spec.weight] for spec in specs}
        return weights | {bias_name(s): qparams.biases[s.name] for s in specs if needs_bias(s)}

    def input_scale(self, spec: LayerSpec, qparams: QParams) -> np.float32:
        """The scale of the activation that an integer layer reads."""
        tensor = self.plan.tensors[self.sources[spec.name]]
        values = qparams.ranges[tensor.name]
        return tensor.quantizer.scale_and_zero_point(values, tensor.num_bits)[0]

    def weight_scales(self, qparams: QParams) -> dict[str, FloatArray]:
        """The scale of each weight, (channels,) or (), raised where a bias would overflow int32.

        That is max(s_w, |b| / (s_in |f| 2^30)) over the layers that share it, with f their factors.
        """
        scales: dict[str, FloatArray] = {}
        for spec in self.plan.layers.values():
            scale = start_scale(spec, qparams)
            bias = qparams.biases.get(spec.name)
            if bias is not None and spec.compute == "integer":
                least = smallest_weight_scale(bias, self.input_scale(spec, qparams))
                factor = np.abs(qparams.factors.get(spec.name, np.ones((), np.float32)))
                least = np.asarray(least / factor, np.float32)
                least = least.reshape(-1) if spec.axis is not None else least.max()
                scale = np.maximum(scale, least)
            scales[spec.weight] = np.maximum(scales.get(spec.weight, scale), scale)
        return scales

    def bias_scale(self, spec: LayerSpec, qparams: QParams, scale: FloatArray) -> FloatArray:
        """The scale of an integer layer's bias, from that of its weight: (channels,) or ()."""
        return bias_scale(self.input_scale(spec, qparams), layer_scale(spec, qparams, scale))

    def with_corrections_kept(self, qparams: QParams) -> QParams:
        """A copy with the corrections added to the biases, which later changes of weights keep."""
        scales = self.weight_scales(qparams)
        biases = {
            spec.name: corrected_bias(
                spec, qparams, fake_weight(spec, qparams, scales[spec.weight])
            )
            for spec in self.plan.layers.values()
            if spec.name in qparams.means
        }
        return qparams.with_biases(biases).with_means({})

    def with_weights_on_grid(self, qparams: QParams) -> QParams:
        """A copy with weights quantized and converted back: the same integers, without error."""
        scales = self.weight_scales(qparams)
        specs = [spec for spec in self.plan.layers.values() if spec.codebook is None]
        return qparams.with_weights(
            {spec.weight: fake_weight(spec, qparams, scales[spec.weight]) for spec in specs}
        )

    def moving_inputs(self, trained: Collection[str]) -> frozenset[str]:
        """The parameter inputs that change when the trained ones do, the trained ones included.

        On integer kernels a bias is rounded to a scale that depends on those of input and weight,
        and the weight's scale rises where the bias needs it.
        """
        moving = set(trained)
        integer = {
            spec: {spec.weight, *range_inputs(self.plan.tensors[self.sources[spec.name]])}
            for spec in self.plan.integer_layers()
        }
        moving |= {s.weight for s, read in integer.items() if (read | {bias_name(s)}) & moving}
        moving |= {bias_name(s) for s, read in integer.items() if needs_bias(s) and read & moving}
        return frozenset(moving)


def bake(student: Student, qparams: QParams) -> ir.Model:
    """A copy of the student with its parameters as constants; its inputs are the teacher's."""
    return with_constants(student.model, student.feeds(qparams))


def bake_between(
    student: Student, qparams: QParams, inputs: Collection[str], outputs: Sequence[str]
) -> ir.Model:
    """The part of a baked student between some of its tensors.

    Only the parameters that this part reads are computed.

    Args:
        student: the student.
        qparams: its quantization parameters.
        inputs: names of tensors that become inputs, or are inputs.
        outputs: names of the tensors wanted; none of them among the inputs.
    """
    part = between(student.model, inputs, outputs)
    read = {str(value.name) for value in part.graph.inputs}
    fix_inputs(part.graph, student.feeds(qparams, read))
    return part


def with_constants(model: ir.Model, values: Mapping[str, np.ndarray]) -> ir.Model:
    """A copy of the model with some of its inputs as constants."""
    copy = model.clone(deep_copy=False)
    fix_inputs(copy.graph, values)
    return copy
