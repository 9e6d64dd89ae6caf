"""GPTQ of a student: block after block, layer after layer, towards the teacher's tensors."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxq.forms.variant import Variant
from onnxq.graph.cut import Block, between
from onnxq.graph.operators import TABLE
from onnxq.learn.gptq.cuts import MICRO_BATCH, Frontier, find_cuts
from onnxq.learn.gptq.layer import Fitted, FittedLayer, Moments, fit_layer
from onnxq.plan.spec import LayerSpec, Plan
from onnxq.progress import Progress, Silent
from onnxq.runtime.clock import TIME_RAN_OUT
from onnxq.runtime.dataset import Dataset, fed_to
from onnxq.runtime.temporary import temporary_folder
from onnxq.student.qparams import QParams, needs_bias
from onnxq.student.student import bake_between
from onnxq.student.weights import LINEAR, MATRIX_RANK, layer_geometry
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned

ROWS_OF_AN_INPUT = 64
"""Rows that the moments are taken from, for each input of an output, about."""
LEAST_ROWS, MOST_ROWS = 2**12, 2**16
"""Such rows at least and at most."""
MOST_INPUTS = 8192
"""Most inputs per output: the moments take the square of it."""

SAVE_SECONDS = 20.0
"""Between two checkpoints at least: each holds all that was fitted so far."""

NOTHING = "no layer has a rounding that can be learned"
INFINITE = "an input or output is NaN or infinite of"
NO_GAIN = "learned rounding did not beat rounding to nearest on the held-out samples"


def reconstruct(
    variant: Variant,
    train: Dataset,
    budget: Budget | None = None,
    *,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> Learned:
    """A variant's quantization parameters, fitted layer by layer.

    Scales, integer weights and biases are fitted.

    Args:
        variant: the student, and the quantization parameters to start from.
        train: the training slice.
        budget: gives the time limit; its epochs and learning rate have no meaning here.
        progress: told how far it is.
        checkpoint: None keeps none.
        resume: whether to resume from the checkpoint.

    Returns:
        The fitted quantization parameters: weights lie on their grid, and biases are as they will
            be written. Where the variant's own have a better held-out score, those.
    """
    began = time.monotonic()
    layers = fitted_layers(variant.student.plan, variant.qparams)
    learned = Learned(variant.score, variant.score, qparams=variant.qparams)
    learned.notes += _notes(variant.student.plan, layers)
    if not layers:
        learned.notes.append(NOTHING)
        return learned
    fitted = Fitted.load(checkpoint) if resume and checkpoint is not None else Fitted()
    if not fitted.over:
        with (
            temporary_folder() as folder,
            # One thread, so that sums come out the same on any number of cores.
            threadpool_limits(1, "blas"),
        ):
            work = Reconstruction(variant, layers, train, budget or Budget(), folder, fitted)
            work.run(progress or Silent(), checkpoint)
    qparams = fitted.put_into(variant.qparams, layers)
    learned.notes += fitted.notes
    score = variant.score_of(qparams)
    learned.history = [score]
    if score < variant.score:
        learned.qparams, learned.score, learned.epoch = qparams, score, 1
    else:
        learned.notes.append(NO_GAIN)
    learned.seconds = time.monotonic() - began
    learned.curve = [(learned.seconds, score, math.nan)]
    learned.images = fitted.samples
    return learned


def fitted_layers(plan: Plan, qparams: QParams) -> list[LayerSpec]:
    """The layers that GPTQ fits: one linear node each, with integer weights of its own."""
    readers = Counter(s.weight for s in (*plan.layers.values(), *plan.float_layers.values()))
    return [
        spec
        for spec in plan.layers.values()
        if spec.op_type in LINEAR
        and spec.codebook is None
        and readers[spec.weight] == 1
        and _inputs(spec, qparams) <= MOST_INPUTS
    ]


def _inputs(spec: LayerSpec, qparams: QParams) -> int:
    """Inputs per output; a number beyond the limit where the weight is no matrix."""
    shape = qparams.weights[spec.weight].shape
    if spec.op_type != "Conv" and len(shape) != MATRIX_RANK:
        return MOST_INPUTS + 1
    return int(spec.parameters // max(1, shape[spec.channel_axis]))


def _rows(spec: LayerSpec, qparams: QParams) -> int:
    """Rows of a layer's input that its moments are taken from."""
    return min(max(ROWS_OF_AN_INPUT * _inputs(spec, qparams), LEAST_ROWS), MOST_ROWS)


def _notes(plan: Plan, layers: Sequence[LayerSpec]) -> list[str]:
    fit = (s for s in plan.layers.values() if s.codebook is None and s.op_type != TABLE)
    others = [spec.name for spec in fit if spec not in layers]
    if not others:
        return []
    return [
        f"{len(others)} of {len(plan.layers)} layers keep nearest rounding, the first is "
        f"'{others[0]}': rounding is learned for Conv, Gemm and MatMul with a weight of their own "
        f"and at most {MOST_INPUTS} inputs to an output"
    ]


class Reconstruction:
    """One pass over the blocks.

    Args:
        variant: the student, and the quantization parameters to start from.
        layers: the layers to fit.
        train: the training slice.
        budget: gives the time limit.
        folder: an empty folder for the tensors between blocks.
        fitted: layers that an earlier run fitted; the others are added.
    """

    def __init__(
        self,
        variant: Variant,
        layers: Sequence[LayerSpec],
        train: Dataset,
        budget: Budget,
        folder: Path,
        fitted: Fitted,
    ) -> None:
        self._variant, self._budget = variant, budget
        self._teacher, self._student = variant.model, variant.student
        self._layers = {spec.name: spec for spec in layers}
        self._nodes = {str(node.name): node for node in variant.student.model.graph}
        self._start = self._qparams = variant.qparams
        self._scales = variant.student.weight_scales(self._start)
        self._fitted = fitted
        self._cuts = find_cuts(variant, list(self._layers), train, folder)
        fitted.notes = [note for note in (self._cuts.note,) if note]
        fitted.samples = len(self._cuts.indices)
        self._inputs: dict[str, Frontier] = {}
        for name in ("original", "student"):
            (folder / name).mkdir()
            self._inputs[name] = Frontier(folder / name, f"the {name}'s tensors between blocks")
        for feeds in train.batches(MICRO_BATCH, self._cuts.indices):
            for each in self._inputs.values():
                each.add(fed_to(self._teacher, feeds))

    def run(self, progress: Progress, checkpoint: Checkpoint | None) -> None:
        """Fit all layers, or as many as the time allows."""
        self._checkpoint, self._saved = checkpoint, time.monotonic()
        try:
            self._run(progress)
        except KeyboardInterrupt:
            self._save()
            raise
        self._fitted.over = True
        self._save()

    def _run(self, progress: Progress) -> None:
        began = time.monotonic()
        blocks = self._cuts.blocks
        progress.start("learn rounding", len(self._layers))
        done = 0
        for i, block in enumerate(blocks):
            names = [name for name in block.layers if name in self._layers]
            for name in names:
                if name not in self._fitted.layers:
                    if time.monotonic() - began > self._budget.max_seconds:
                        self._fitted.notes.append(
                            f"{TIME_RAN_OUT}: rounding is learned for {done} of "
                            f"{len(self._layers)} layers; --max-minutes gives more"
                        )
                        progress.finish()
                        return
                    moments = self._moments(self._layers[name], block)
                    if not moments.finite:
                        self._fitted.notes.append(f"{INFINITE} '{name}', which keeps its rounding")
                        continue
                    self._fitted.layers[name] = self._fit(self._layers[name], moments)
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self._save()
                fitted = self._fitted.layers[name]
                self._qparams = fitted.put_into(self._qparams, self._layers[name])
                done += 1
                progress.at(done, self._text(i, names))
            if i + 1 < len(blocks):
                self._advance(i)
        progress.finish()

    def _text(self, block: int, names: Sequence[str]) -> str:
        layers = self._fitted.layers
        found = [layers[name] for name in names if name in layers]
        before, after = sum(f.start_error for f in found), sum(f.error for f in found)
        count = len(self._cuts.blocks)
        return f"block {block + 1} of {count}, error {before:.3g} at the start, now {after:.3g}"

    def _moments(self, spec: LayerSpec, block: Block) -> Moments:
        shape = self._start.weights[spec.weight].shape
        geometry = layer_geometry(self._nodes[spec.name], spec, shape)
        chunks = self._inputs["student"].runs
        seed = [self._budget.seed, list(self._layers).index(spec.name)]
        moments = Moments(geometry, seed, max(1, _rows(spec, self._start) // chunks))
        value = self._nodes[spec.name].inputs[0]
        assert value is not None
        read = str(value.name)
        found = self._inputs["student"].run(self._student_part, block.inputs, [read])
        originals = self._cuts.originals(block.inputs)
        # What the next block will read is computed with the first layer's outputs.
        outputs = self._cuts.originals(block.outputs)
        wanted = self._inputs["original"].run(
            self._teacher_part, originals, list(dict.fromkeys([spec.output, *outputs])), outputs
        )
        for x, t in zip(found, wanted, strict=True):
            moments.add(x[read], t[spec.output])
        return moments

    def _fit(self, spec: LayerSpec, moments: Moments) -> FittedLayer:
        weight = self._start.weights[spec.weight]
        scale = self._scales[spec.weight]
        bias = self._fixed_bias(spec, weight.shape[spec.channel_axis])
        return fit_layer(spec, moments, self._fitted.samples, weight, scale, bias)

    def _fixed_bias(self, spec: LayerSpec, channels: int) -> np.ndarray | None:
        """The bias of a layer whose bias isn't fitted: it has none, or shared centroids."""
        if not needs_bias(spec):
            return np.zeros(channels, np.float32)
        if self._variant.recipe.bias_centroids is not None:
            return self._start.biases[spec.name]
        return None

    def _advance(self, index: int) -> None:
        block, later = self._cuts.blocks[index], self._cuts.later(index)
        originals = self._cuts.originals
        self._inputs["student"].advance(self._student_part, block.inputs, block.outputs, later)
        self._inputs["original"].advance(
            self._teacher_part, originals(block.inputs), originals(block.outputs), originals(later)
        )

    def _teacher_part(self, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
        return between(self._teacher, inputs, outputs)

    def _student_part(self, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
        return bake_between(self._student, self._qparams, inputs, outputs)

    def _save(self) -> None:
        if self._checkpoint is not None:
            self._fitted.save(self._checkpoint)
            self._saved = time.monotonic()
