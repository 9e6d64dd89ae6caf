"""The candidate settings of one weight, and the weights and biases that each gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxq.numerics.clip_mse import weight_threshold
from onnxq.numerics.codebook import Codebook, fit_codebooks
from onnxq.numerics.qparams import FloatArray
from onnxq.plan.spec import LayerSpec, codebook_refusal, weight_bytes
from onnxq.runtime.session import Arrays
from onnxq.search.table import FLOAT, Setting
from onnxq.student.qparams import (
    QParams,
    bias_name,
    corrected_bias,
    fake_weight,
    needs_bias,
)
from onnxq.student.student import Student

COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Codebook sizes that a sweep tries: whole bits; sizes between them are interpolated."""

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bit widths that a sweep tries; 7 is interpolated."""


class Candidates:
    """The weight and biases of the layers of one weight, under each candidate setting.

    Args:
        student: gives the plan, and which layers read integer inputs.
        qparams: the student's quantization parameters.
        layers: the layers that read the weight.
        codebooks: whether codebooks are candidates beside integer weights.
        calibration: the calibration method of integer weights.

    Attributes:
        settings: the candidates, with the bytes that the weight then takes.
    """

    def __init__(
        self,
        student: Student,
        qparams: QParams,
        layers: Sequence[LayerSpec],
        *,
        codebooks: bool = True,
        calibration: str = "mse",
    ) -> None:
        self.layers = tuple(layers)
        self._student, self._qparams = student, qparams
        self._calibration = calibration
        first = self.layers[0]
        self._weight, self._integer = first.weight, any(s.compute == "integer" for s in layers)
        self.settings = self._codebook_settings() if codebooks else {}
        if self._weight in qparams.thresholds:
            self.settings |= self._width_settings()
        self._codebooks: dict[int, Codebook] = {}
        self._thresholds: dict[int, FloatArray] = {}

    def _codebook_settings(self) -> dict[Setting, int]:
        parameters = self.layers[0].parameters
        return {
            Setting(codebook=count): self._bytes(codebook=count)
            for count in COUNTS
            if not codebook_refusal(parameters, count, integer=self._integer)
        }

    def _width_settings(self) -> dict[Setting, int]:
        """The plan's bit width, and the smaller ones that save bytes over each wider one."""
        widest = self.layers[0].num_bits
        found = {widest: self._bytes(num_bits=widest)}
        for width in sorted(WIDTHS, reverse=True):
            size = self._bytes(num_bits=width)
            if width < widest and size < min(found.values()):
                found[width] = size
        return {Setting(weight_bits=width): found[width] for width in sorted(found)}

    def _bytes(self, **form: int) -> int:
        return weight_bytes(replace(self.layers[0], **form), integer=self._integer)  # type: ignore[arg-type]

    @property
    def float_size(self) -> int:
        """Bytes of the float weights."""
        return 4 * self.layers[0].parameters

    def fit(self) -> None:
        """Fit the codebooks and thresholds of all settings."""
        spec = self.layers[0]
        weight = self._qparams.weights[self._weight]
        for width in [s.weight_bits for s in self.settings if s.weight_bits is not None]:
            self._thresholds[width] = (
                self._qparams.thresholds[self._weight]
                if width == spec.num_bits
                else weight_threshold(weight, self._calibration, width, spec.axis)
            )
        largest = spec.centroid_max if self._integer else None
        counts = [s.codebook for s in self.settings if s.codebook is not None]
        self._codebooks = fit_codebooks(weight, counts, spec.axis, largest)

    def forget(self) -> None:
        """Release the memory of codebooks and thresholds."""
        self._codebooks.clear()
        self._thresholds.clear()

    def parameters(self, setting: Setting) -> Arrays:
        """The weight and biases of a setting, by the student's input name."""
        layers = self.layers
        qparams = self._qparams
        if setting == FLOAT:
            fake = qparams.weights[self._weight]
        else:
            layers, qparams = self._quantized(setting)
            plan = replace(self._student.plan, layers={spec.name: spec for spec in layers})
            scales = replace(self._student, plan=plan).weight_scales(qparams)
            fake = fake_weight(layers[0], qparams, scales[self._weight])
        biases = {
            bias_name(spec): corrected_bias(spec, qparams, fake)
            for spec in layers
            if needs_bias(spec)
        }
        return {self._weight: fake, **biases}

    def _quantized(self, setting: Setting) -> tuple[tuple[LayerSpec, ...], QParams]:
        """The layers with a setting, and their quantization parameters."""
        form = {"codebook": setting.codebook}
        if setting.codebook is not None:
            book = self._codebooks[setting.codebook]
            qparams = self._qparams.with_codebooks({self._weight: book})
        else:
            assert setting.weight_bits is not None
            form["num_bits"] = setting.weight_bits
            threshold = self._thresholds[setting.weight_bits]
            qparams = self._qparams.with_thresholds({self._weight: threshold})
        return tuple(replace(spec, **form) for spec in self.layers), qparams  # type: ignore[arg-type]
