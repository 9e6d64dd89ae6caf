"""The metrics of a run, as plain data to and from JSON."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnxq.errors import ModelError


def misfit(kind: type, fields: Mapping[str, Any]) -> str | None:
    """The first field whose value does not have the type of the dataclass's field.

    Args:
        kind: the dataclass; names that it lacks are ignored.
        fields: values by name, from JSON.

    Returns:
        The field's name, or None where all of them fit.
    """
    hints = get_type_hints(kind)
    known = ((name, value) for name, value in fields.items() if name in hints)
    return next((name for name, value in known if not _fits(value, hints[name])), None)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items()
        )
    if origin is list:
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    if hint is float:
        return type(value) in (int, float)
    # A bool is an int to isinstance.
    return type(value) is hint


METADATA_KEY = "onnxq.figures"
"""The key of a model's metadata under which the metrics are kept as JSON."""

OUTSIDE_FIELDS = (
    "task",
    "task_metrics",
    "search",
    "synthesis",
    "curve",
    "costs",
    "shipped_before",
    "shipped_after",
    "latency_before_ms",
    "latency_before_spread_ms",
    "latency_after_ms",
    "latency_after_spread_ms",
)
"""Metrics of one machine or of other tools, and long ones: never written into a model file."""

LEAST_METRICS = ("equalization",)
"""Metrics without which a file can't be compared with its original, beside the sizes."""

SHORT_METRICS = (*LEAST_METRICS, "agreement", "sqnr_db", "samples", "held_back", "verdict")
"""Those that the file of a small model holds, for which all of them would be too long."""


LITTLE_SMALLER = 0.9
"""Share of the original's size above which a note says why the file is no smaller."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of a run; None or empty where not measured or without meaning.

    Attributes:
        size_before: bytes of the original file, with its external data.
        size_after: bytes of the exported file.
        shipped_before: bytes of the original after deflate.
        shipped_after: bytes of the exported file after deflate.
        codebooks: number of centroids by name of the layers whose weights are a codebook.
        narrow: bit width by name of the layers whose integer weights have fewer bits than their
            tensor's type, which is int8 or INT4.
        integer_layers: number of layers that run on integer kernels.
        layers: number of layers that are quantized, weight-only ones with them.
        agreement: share of equal decisions, 0 to 1.
        kl: mean KL divergence of the exported model's softmax from the original's, nats.
        estimated_drop: label-free estimate of the top-1 drop, percentage points.
        estimated_drop_error: one standard error of `estimated_drop`, percentage points.
        sqnr_db: signal to quantization noise of each output, decibels.
        task: what the outputs are for, as found from the graph.
        task_metrics: the task's own metrics by name, such as the cosine of embeddings.
        student_agreement: share of the samples on which the exported model decides as the
            student did.
        latency_before_ms: median latency of the original, milliseconds.
        latency_before_spread_ms: interquartile range of the same.
        latency_after_ms: median latency of the exported model, milliseconds.
        latency_after_spread_ms: interquartile range of the same.
        kernels: operator that runs each layer, by the layer's name.
        weight_only: reason by name of the layers stored as integers that run in float.
        left_alone: reason by name of the layers that are not quantized.
        saturating: names of the integer layers whose 16-bit sums may overflow on x86 processors
            without VNNI.
        float_nodes: names of nodes that stayed float between integer ones.
        learning: held-out scores in `unit`, lower is better: `start_score`, `learned_score`,
            `scores` by epoch (None: not finite); `epoch`, the one that was kept of `epochs_run`;
            `score`, the relative RMSE of the outputs of the final student.
        engine: what computed gradients, 'ort-training' or 'onnx'; '' where none were needed.
        curve: after each epoch, `minutes` since training began, the held-out `scores`, and
            `agreement` in percent; None where not finite.
        search: result of the search: `goal`, `met`, `settings` by layer, `trials`, `frontier` and
            `sweep`.
        synthesis: of synthetic images, `method`, `count`, `steps`, `weights` and `losses` by kind,
            and the number of images by class in `classes`.
        equalization: the chosen form, in words.
        bias_correction: whether biases were corrected.
        bias_centroids: where biases are centroids, their `count`, and the held-out errors before
            training, with each channel's `own` bias and with `shared` ones.
        samples: number of samples used.
        held_back: number of held-out samples among them.
        costs: of each stage in order, its name (`stage`), CPU `seconds`, and `passes` of all
            samples through the float model, where a backward pass counts as two.
        notes: sentences for the user.
        verdict: why the result is broken or doubtful, and what the time limit left out; '' where
            there is neither.
    """

    size_before: int
    size_after: int
    shipped_before: int | None = None
    shipped_after: int | None = None
    codebooks: dict[str, int] = field(default_factory=dict)
    narrow: dict[str, int] = field(default_factory=dict)
    integer_layers: int = 0
    layers: int = 0
    agreement: float | None = None
    kl: float | None = None
    estimated_drop: float | None = None
    estimated_drop_error: float | None = None
    sqnr_db: dict[str, float] = field(default_factory=dict)
    task: str = ""
    task_metrics: dict[str, float] = field(default_factory=dict)
    student_agreement: float | None = None
    latency_before_ms: float | None = None
    latency_before_spread_ms: float | None = None
    latency_after_ms: float | None = None
    latency_after_spread_ms: float | None = None
    kernels: dict[str, str] = field(default_factory=dict)
    weight_only: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    saturating: list[str] = field(default_factory=list)
    float_nodes: list[str] = field(default_factory=list)
    learning: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    curve: dict[str, list[float | None]] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    synthesis: dict[str, Any] = field(default_factory=dict)
    equalization: str = ""
    bias_correction: bool = False
    bias_centroids: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    held_back: int = 0
    costs: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: str = ""

    @property
    def ratio(self) -> float:
        """Size after over size before."""
        return self.size_after / max(self.size_before, 1)

    @property
    def latency_ratio(self) -> float | None:
        """Latency after over latency before; None where it was not measured."""
        if not self.latency_before_ms or self.latency_after_ms is None:
            return None
        return self.latency_after_ms / self.latency_before_ms

    def of_size(self, size: int) -> Metrics:
        """The same of a file of so many bytes, with a note where these are little fewer."""
        found = dataclasses.replace(self, size_after=size)
        if size <= LITTLE_SMALLER * self.size_before:
            return found
        return dataclasses.replace(found, notes=[*self.notes, _size_note(found.ratio)])

    def to_fields(self, *, latency: bool = True) -> dict[str, Any]:
        """The metrics by name; without latencies where `latency` is False."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if latency or k not in OUTSIDE_FIELDS}

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(self.to_fields(), sort_keys=True)

    def to_metadata(self, wanted: Collection[str] | None = None) -> str:
        """`to_json` without latencies: a file's bytes don't depend on the time.

        Defaults are left out and there are no spaces, to keep small files small.

        Args:
            wanted: names of the metrics to write beside the sizes; None means all.
        """
        defaults = Metrics(self.size_before, self.size_after)
        fields = self.to_fields(latency=False)
        sizes = {key: fields[key] for key in ("size_before", "size_after")}
        found = {
            key: value
            for key, value in fields.items()
            if value != getattr(defaults, key) and (wanted is None or key in wanted)
        }
        return json.dumps(sizes | found, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_fields`; names that this version doesn't know are ignored."""
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in fields.items() if key in known})

    @classmethod
    def from_json(cls, text: str) -> Metrics:
        """The metrics that `to_json` or `to_metadata` wrote.

        Raises:
            ModelError: the text is not a JSON table with both sizes.
        """
        try:
            fields = json.loads(text)
            if (name := misfit(cls, fields)) is not None:
                raise ValueError(f"'{name}' is of another kind than it should be")
            return cls.from_fields(fields)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ModelError(
                f'The metadata "{METADATA_KEY}" can\'t be read ({error}), where the metrics of '
                "onnxq are expected; compress the original again."
            ) from error


def _size_note(ratio: float) -> str:
    if ratio > 2:
        reason = "the original computes weights that are written out here"
    else:
        reason = "few of its bytes are weights of layers that can be quantized"
    return f"the file has {ratio:.2f} times the original's size: {reason}"
