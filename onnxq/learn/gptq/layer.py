"""GPTQ of one layer: scales, integer weights and bias, from moments of inputs and targets."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.numerics.gptq import Floats, Geometry, quadratic, round_layer
from onnxq.numerics.quantizers import WEIGHT, FloatArray, per_channel, weight_scale
from onnxq.plan.spec import LayerSpec
from onnxq.student.qparams import QParams
from onnxq.train.checkpoint import Checkpoint


def transposed(x: FloatArray) -> FloatArray:
    """The transpose of each matrix of (G, K, N); on Arm a copy.

    Numpy computes the product of a matrix and its own transpose by SYRK, which the OpenBLAS 0.3.31
    of numpy 2.4 gets wrong in float32 with SME and with SVE of 512 bits (OpenBLAS #5873).
    """
    rows = x.transpose(0, 2, 1)
    return rows.copy() if platform.machine() in ("aarch64", "arm64") else rows


class Moments:
    """Running sums over rows of inputs x and target outputs t, in float64.

    Rows are taken relative to the mean of the first micro-batch. Products are float32, and inputs
    that hardly vary about a large mean would lose their precision otherwise.

    Args:
        geometry: how the layer reads its input.
        seed: of the choice of rows.
        rows: rows per micro-batch; of more, a random choice is used.

    Attributes:
        geometry: how the layer reads its input.
    """

    def __init__(self, geometry: Geometry, seed: Sequence[int], rows: int) -> None:
        self.geometry, self._most = geometry, rows
        self._random = np.random.default_rng(seed)
        self._sums: list[Floats] = []
        self._count = 0

    def add(self, x: FloatArray, t: FloatArray) -> None:
        """Add one micro-batch: the layer's input and its target output."""
        places = self.geometry.places(t.shape)
        chosen = np.arange(places)
        if places > self._most:
            chosen = np.sort(self._random.choice(places, self._most, replace=False))
        inputs = self.geometry.inputs(x, chosen).transpose(1, 2, 0)
        wanted = self.geometry.outputs(t, chosen).transpose(1, 2, 0)
        if not self._sums:
            self._x, self._t = (each.mean(axis=2, keepdims=True) for each in (inputs, wanted))
        # `finite` reports values that are not finite.
        with np.errstate(invalid="ignore", over="ignore"):
            inputs, wanted = inputs - self._x, wanted - self._t
            rows = transposed(inputs)
            sums = (inputs @ rows, wanted @ rows, inputs.sum(axis=2), wanted.sum(axis=2))
        if not self._sums:
            self._sums = [np.zeros(each.shape) for each in sums]
        for total, each in zip(self._sums, sums, strict=True):
            total += each
        self._count += len(chosen)

    @property
    def finite(self) -> bool:
        """Whether all inputs and targets so far were finite."""
        return all(bool(np.isfinite(each).all()) for each in self._sums)

    def means(self) -> tuple[Floats, Floats]:
        """E[x], (G, K), and E[t], (G, R)."""
        x, t = self._offsets()
        return self._x[..., 0] + x, self._t[..., 0] + t

    def _offsets(self) -> tuple[Floats, Floats]:
        """The differences of the means to those of the first micro-batch."""
        return self._sums[2] / self._count, self._sums[3] / self._count

    def second(self, bias: Floats | None) -> tuple[Floats, Floats]:
        """E[x x^T], (G, K, K), and E[(t - b) x^T], (G, R, K).

        Args:
            bias: b, (G, R), which the layer adds; None where the bias is free, which makes the
                moments covariances.
        """
        x, t = self._offsets()
        hessian = self._sums[0] / self._count - x[:, :, None] * x[:, None, :]
        cross = self._sums[1] / self._count - t[:, :, None] * x[:, None, :]
        if bias is None:
            return hessian, cross
        x, t = self.means()
        wanted = (t - bias)[:, :, None]
        return hessian + x[:, :, None] * x[:, None, :], cross + wanted * x[:, None, :]


ROWS_OF_A_SAMPLE = 8
"""Independent rows that a sample holds, where its inputs alone count: neighbours are alike."""


@dataclass(frozen=True)
class FittedLayer:
    """The fitted parameters of one layer.

    Attributes:
        threshold: T, (channels,) or ().
        weight: scale times the integer weights, in the shape of the weight.
        bias: (channels,); None where the layer's bias is not free.
        error: mean squared error that the integer weights add to the outputs, damping included.
        start_error: the same with the float weights rounded to nearest.
    """

    threshold: FloatArray
    weight: FloatArray
    bias: FloatArray | None
    error: float
    start_error: float

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for a checkpoint."""
        errors = np.array([self.error, self.start_error])
        found = {"threshold": self.threshold, "weight": self.weight, "errors": errors}
        return found if self.bias is None else {**found, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FittedLayer:
        """The inverse of `arrays`."""
        error, start_error = arrays["errors"].tolist()
        bias = arrays.get("bias")
        return cls(arrays["threshold"], arrays["weight"], bias, error, start_error)

    def put_into(self, qparams: QParams, spec: LayerSpec) -> QParams:
        """The quantization parameters with those of this layer."""
        found = qparams.with_weights({spec.weight: self.weight})
        found = found.with_thresholds({spec.weight: self.threshold})
        if self.bias is None:
            return found
        means = {name: mean for name, mean in found.means.items() if name != spec.name}
        return found.with_biases({spec.name: self.bias}).with_means(means)


def fit_layer(
    spec: LayerSpec,
    moments: Moments,
    samples: int,
    weight: FloatArray,
    scale: FloatArray,
    bias: FloatArray | None,
) -> FittedLayer:
    """The integer weights with the least squared error of the layer's output, and their bias.

    Args:
        spec: the layer.
        moments: of its inputs and target outputs.
        samples: the number of samples behind the moments.
        weight: the float weight.
        scale: the starting scale, (channels,) or ().
        bias: the bias that the layer keeps, (channels,); None where it becomes E[t] - W~ E[x].
    """
    geometry = moments.geometry
    rows = geometry.to_rows(weight.astype(np.float64))
    fixed = None if bias is None else bias.astype(np.float64).reshape(rows.shape[:2])
    form = quadratic(*moments.second(fixed), rows, ROWS_OF_A_SAMPLE * samples, samples)
    shared = spec.axis is None
    start = np.broadcast_to(scale if shared else scale.reshape(rows.shape[:2]), rows.shape[:2])
    largest = WEIGHT.largest(spec.num_bits)
    found = round_layer(form, rows, start.astype(np.float64), largest, shared=shared)
    flat = found.scale.reshape(-1) * largest
    threshold = np.asarray(flat[0] if shared else flat, np.float32)
    integers = geometry.from_rows(found.integers).astype(np.float32)
    real = integers * per_channel(weight_scale(threshold, spec.num_bits), weight.ndim, spec.axis)
    fitted = None if bias is not None else _free_bias(moments, geometry.to_rows(real))
    return FittedLayer(threshold, real, fitted, found.error, found.start_error)


def _free_bias(moments: Moments, rows: Floats) -> FloatArray:
    """E[t] - W~ E[x], (channels,)."""
    x, t = moments.means()
    shift = (rows.astype(np.float64) @ x[..., None])[..., 0]
    return np.asarray((t - shift).reshape(-1), np.float32)


OVER, SAMPLES = "over", "samples"
"""Of a checkpoint: this stage is done, with these notes and with so many samples."""


@dataclass
class Fitted:
    """The layers that were fitted, and how the stage went.

    Attributes:
        layers: by name.
        over: whether the stage has ended.
        notes: sentences for the user, from the end of the stage on.
        samples: the number of samples used, from the end of the stage on.
    """

    layers: dict[str, FittedLayer] = field(default_factory=dict)
    over: bool = False
    notes: list[str] = field(default_factory=list)
    samples: int = 0

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Fitted:
        """The state that an earlier run saved; an empty one where there is none.

        Raises:
            OutputError: the state is damaged, or belongs to another run.
        """
        arrays = checkpoint.load() or {}
        notes, samples = arrays.pop(OVER, None), arrays.pop(SAMPLES, None)
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            key, _, layer = name.partition("/")
            found.setdefault(layer, {})[key] = array
        layers = {layer: FittedLayer.from_arrays(each) for layer, each in found.items()}
        if notes is None or samples is None:
            return cls(layers)
        return cls(layers, True, notes.tolist(), int(samples))

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the state.

        Raises:
            OutputError: the disk is full, or the folder can't be written.
        """
        named = {
            f"{key}/{layer}": array
            for layer, fitted in self.layers.items()
            for key, array in fitted.arrays().items()
        }
        if self.over:
            named |= {OVER: np.array(self.notes, np.str_), SAMPLES: np.array(self.samples)}
        checkpoint.save(named)

    def put_into(self, qparams: QParams, specs: Iterable[LayerSpec]) -> QParams:
        """The quantization parameters with those of all fitted layers."""
        for spec in specs:
            if spec.name in self.layers:
                qparams = self.layers[spec.name].put_into(qparams, spec)
        return qparams
