"""The settings that one weight may have, and what its layers then read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxq.numerics.codebook import Codebook, fit_codebooks
from onnxq.plan.codebooks import code_bytes, codebook_bytes, codebook_refusal
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import (
    Quantizers,
    bias_name,
    corrected_bias,
    fake_weight,
    needs_bias,
    weight_scales,
)
from onnxq.rewrite.student import Student
from onnxq.search.table import FLOAT, Setting
from onnxq.session import Arrays

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Centroids that a codebook may have: whole bits, and those between are near."""


class Candidates:
    """What the layers of one weight read under each setting, as the student computes it.

    Args:
        student: for its plan and where its layers read codes.
        quantizers: thresholds, ranges and mean inputs.
        layers: those that read the weight.

    Attributes:
        settings: those that are tried, with the bytes that the weights then take.
    """

    def __init__(
        self, student: Student, quantizers: Quantizers, layers: Sequence[LayerSpec]
    ) -> None:
        self.layers = tuple(layers)
        self._student, self._quantizers = student, quantizers
        first = self.layers[0]
        self._weight, self._integer = first.weight, any(s.compute == "integer" for s in layers)
        self.settings = {
            Setting(codebook=count): codebook_bytes(first.parameters, count, integer=self._integer)
            for count in COUNTS
            if not codebook_refusal(first.parameters, count, integer=self._integer)
        }
        if self._weight in quantizers.thresholds:
            size = code_bytes(first.parameters, first.num_bits)
            self.settings[Setting(weight_bits=first.num_bits)] = size
        self._codebooks: dict[int, Codebook] = {}

    @property
    def float_size(self) -> int:
        """Bytes of the float weights."""
        return 4 * self.layers[0].parameters

    def fit(self) -> None:
        """Find the codebooks of all settings."""
        spec = self.layers[0]
        weight = self._quantizers.weights[self._weight]
        largest = spec.centroid_max if self._integer else None
        counts = [s.codebook for s in self.settings if s.codebook is not None]
        self._codebooks = fit_codebooks(weight, counts, spec.axis, largest)

    def forget(self) -> None:
        """Let go of the codebooks and their memory."""
        self._codebooks.clear()

    def parameters(self, setting: Setting) -> Arrays:
        """The weight and the biases of a setting, by the names of the student's inputs."""
        layers = self.layers
        quantizers = self._quantizers
        if setting == FLOAT:
            fake = quantizers.weights[self._weight]
        else:
            layers = tuple(replace(spec, codebook=setting.codebook) for spec in layers)
            if setting.codebook is not None:
                book = self._codebooks[setting.codebook]
                quantizers = quantizers.with_codebooks({self._weight: book})
            plan = replace(self._student.plan, layers={spec.name: spec for spec in layers})
            scales = weight_scales(plan, quantizers, self._student.sources)
            fake = fake_weight(layers[0], quantizers, scales[self._weight])
        biases = {
            bias_name(spec): corrected_bias(spec, quantizers, fake)
            for spec in layers
            if needs_bias(spec)
        }
        return {self._weight: fake, **biases}
