"""GPTQ of one layer.

Its scales, integer weights and bias from moments of its inputs and of the outputs wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.numerics.gptq import Floats, quadratic, round_layer
from onnxq.numerics.patches import Geometry
from onnxq.numerics.qparams import FloatArray, per_channel, weight_quant_max, weight_scale
from onnxq.plan.spec import LayerSpec
from onnxq.student.qparams import QParams
from onnxq.train.checkpoint import Checkpoint


class Moments:
    """Running sums over rows of inputs x and wanted outputs t, in float64.

    Rows are taken from the mean of the first micro-batch: products are float32, and inputs that
    hardly vary about a large mean would leave nothing else.

    Args:
        geometry: how the layer reads its input.
        seed: of the choice of rows.
        rows: in each micro-batch at most; of more, as many are drawn.

    Attributes:
        geometry: how the layer reads its input.
    """

    def __init__(self, geometry: Geometry, seed: Sequence[int], rows: int) -> None:
        self.geometry, self._most = geometry, rows
        self._random = np.random.default_rng(seed)
        self._sums: list[Floats] = []
        self._count = 0

    def add(self, x: FloatArray, t: FloatArray) -> None:
        """One micro-batch: the layer's input and the output wanted of it."""
        places = self.geometry.places(t.shape)
        chosen = np.arange(places)
        if places > self._most:
            chosen = np.sort(self._random.choice(places, self._most, replace=False))
        inputs = self.geometry.inputs(x, chosen).transpose(1, 2, 0)
        wanted = self.geometry.outputs(t, chosen).transpose(1, 2, 0)
        if not self._sums:
            self._x, self._t = (each.mean(axis=2, keepdims=True) for each in (inputs, wanted))
        # What is not finite is told by `finite`.
        with np.errstate(invalid="ignore", over="ignore"):
            inputs, wanted = inputs - self._x, wanted - self._t
            rows = inputs.transpose(0, 2, 1)
            sums = (inputs @ rows, wanted @ rows, inputs.sum(axis=2), wanted.sum(axis=2))
        if not self._sums:
            self._sums = [np.zeros(each.shape) for each in sums]
        for total, each in zip(self._sums, sums, strict=True):
            total += each
        self._count += len(chosen)

    @property
    def finite(self) -> bool:
        """Whether no input and no output was infinite or NaN."""
        return all(bool(np.isfinite(each).all()) for each in self._sums)

    def means(self) -> tuple[Floats, Floats]:
        """E[x], (G, K), and E[t], (G, R)."""
        x, t = self._offsets()
        return self._x[..., 0] + x, self._t[..., 0] + t

    def _offsets(self) -> tuple[Floats, Floats]:
        """How far the means lie from those of the first micro-batch."""
        return self._sums[2] / self._count, self._sums[3] / self._count

    def second(self, bias: Floats | None) -> tuple[Floats, Floats]:
        """E[x x^T], (G, K, K), and E[(t - b) x^T], (G, R, K).

        Args:
            bias: b, (G, R), what the layer adds; None where it is free to add what suits its
                weights best, which makes these the covariances.
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
"""Independent rows that the moments take a sample to hold: neighbours in an image are alike."""


@dataclass(frozen=True)
class FittedLayer:
    """The numbers of one layer.

    Attributes:
        threshold: T, (channels,) or ().
        weight: scale * code, of the weight's own shape.
        bias: (channels,); None where the layer's bias is not free.
        error: mean squared error of the outputs that the codes add, damping included.
        start_error: the same with the float weights rounded to nearest.
    """

    threshold: FloatArray
    weight: FloatArray
    bias: FloatArray | None
    error: float
    start_error: float

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, ready for a checkpoint."""
        errors = np.array([self.error, self.start_error])
        found = {"threshold": self.threshold, "weight": self.weight, "errors": errors}
        return found if self.bias is None else {**found, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FittedLayer:
        """What `arrays` gave."""
        error, start_error = arrays["errors"].tolist()
        bias = arrays.get("bias")
        return cls(arrays["threshold"], arrays["weight"], bias, error, start_error)

    def put_into(self, qparams: QParams, spec: LayerSpec) -> QParams:
        """The numbers with this layer's."""
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
    """The codes of least squared error of the layer's output, and the bias that goes with them.

    Args:
        spec: the layer.
        moments: of its inputs and wanted outputs.
        samples: that the moments were taken from.
        weight: the float weight.
        scale: to start from, (channels,) or ().
        bias: what the layer adds and goes on to add, (channels,); None where it is free to
            become E[t] - W~ E[x].
    """
    geometry = moments.geometry
    rows = geometry.to_rows(weight.astype(np.float64))
    fixed = None if bias is None else bias.astype(np.float64).reshape(rows.shape[:2])
    form = quadratic(*moments.second(fixed), rows, ROWS_OF_A_SAMPLE * samples)
    shared = spec.axis is None
    start = np.broadcast_to(scale if shared else scale.reshape(rows.shape[:2]), rows.shape[:2])
    limit = weight_quant_max(spec.num_bits)
    found = round_layer(form, rows, start.astype(np.float64), limit, shared=shared)
    flat = found.scale.reshape(-1) * limit
    threshold = np.asarray(flat[0] if shared else flat, np.float32)
    codes = geometry.from_rows(found.codes).astype(np.float32)
    real = codes * per_channel(weight_scale(threshold, spec.num_bits), weight.ndim, spec.axis)
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
    """Layers that were fitted, and how the stage went.

    Attributes:
        layers: by name.
        over: whether none will follow.
        notes: sentences for the user; kept once the stage is over.
        samples: how many were used; kept once the stage is over.
    """

    layers: dict[str, FittedLayer] = field(default_factory=dict)
    over: bool = False
    notes: list[str] = field(default_factory=list)
    samples: int = 0

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Fitted:
        """What an earlier run saved; nothing where it saved nothing.

        Raises:
            OutputError: the state is damaged, or another run's.
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
        """Keep all of it.

        Raises:
            OutputError: there is no space, or the folder can't be written.
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
        """The numbers with those of all fitted layers."""
        for spec in specs:
            if spec.name in self.layers:
                qparams = self.layers[spec.name].put_into(qparams, spec)
        return qparams
