"""The normalise stage: an explicit list of passes, and a check that outputs stay equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.errors import ModelError, PassError, reason_of
from onnxq.graph.facts import is_op
from onnxq.load.float_types import float_types_notes
from onnxq.load.interface import Interface, input_specs
from onnxq.load.model import Loaded
from onnxq.load.read import run_model
from onnxq.normalise.affine import BatchNormToAffine, FoldAffine, FoldBatchNorm
from onnxq.normalise.clean import NameEverything, RemoveIdentity, Simplify, SweepDead
from onnxq.normalise.fold_constants import FoldConstants, LiftConstants
from onnxq.normalise.fold_shapes import FoldShapes
from onnxq.normalise.free_batch import (
    CheckFeeds,
    FreedBatch,
    fix_batch,
    free_and_verify_batch,
    given_feeds,
    pieces_of,
)
from onnxq.normalise.gemm import ConvToGemm, GemmToPlain
from onnxq.normalise.infer_shapes import AskRuntime, InferShapes
from onnxq.normalise.own_outputs import OwnOutputs
from onnxq.normalise.passes import GraphPass, PassRunner
from onnxq.normalise.plain_nodes import (
    ChainSum,
    ClipToRelu,
    ExpandWhere,
    MinMaxToClip,
    PReluToLeakyRelu,
    SplitToSlices,
)
from onnxq.normalise.products import EinsumToMatMul, LeftConstant, SqueezeWeight
from onnxq.normalise.spatial import FullPads, MakePadsExplicit, MeanToPool, PoolBeforeConv
from onnxq.normalise.transposes import MergeTransposes, TransposedToGemm
from onnxq.numerics.distances import Outputs, find_difference, rounding_noise
from onnxq.runtime.session import Feeds

CLEAN: tuple[GraphPass, ...] = (
    LiftConstants(),
    RemoveIdentity(),
    FoldConstants(),
    SweepDead(),
    InferShapes(),
    FoldShapes(),
)
"""Repeated until nothing changes: each gives the others more to do."""

FORMS: tuple[GraphPass, ...] = (
    MakePadsExplicit(),
    FullPads(),
    SplitToSlices(),
    ExpandWhere(),
    ChainSum(),
    MinMaxToClip(),
    ClipToRelu(),
    PReluToLeakyRelu(),
    MeanToPool(),
    EinsumToMatMul(),
    LeftConstant(),
    GemmToPlain(),
    SqueezeWeight(),
    MergeTransposes(),
    TransposedToGemm(),
    FoldAffine(),
    PoolBeforeConv(),
    ConvToGemm(),
)
"""Forms that have right gradients and integer kernels; BatchNormalization is kept."""

FOLD: tuple[GraphPass, ...] = (
    FoldBatchNorm(),
    BatchNormToAffine(),
    FoldAffine(),
    PoolBeforeConv(),
    ConvToGemm(),
)
"""BatchNormalization goes; what it leaves may fold further."""

START: tuple[GraphPass, ...] = (
    LiftConstants(),
    FoldConstants(),
    Simplify(),
    NameEverything(),
    OwnOutputs(),
    AskRuntime(),
)

FINISH: tuple[GraphPass, ...] = (SweepDead(), NameEverything(), InferShapes())


@dataclass(frozen=True)
class Normalised:
    """A normalised model.

    Attributes:
        model: equal outputs, fewer kinds of nodes, no BatchNormalization where it folds.
        unfolded: the same with BatchNormalization and its statistics kept.
        batch_free: whether the first dimension of all inputs is a batch of any size.
        notes: sentences for the user on what could not be done.
        original_batch: the only batch size that the original takes; None if that is any, or if its
            inputs share no batch.
    """

    model: ir.Model
    unfolded: ir.Model
    batch_free: bool
    notes: list[str]
    original_batch: int | None = None


def normalise(model: ir.Model, check_feeds: CheckFeeds = None) -> Normalised:
    """Rewrite a model to the form that the later stages work on; the argument is not changed.

    Args:
        model: from `load_model`.
        check_feeds: what the outputs are compared on, before and after: feeds, a function from a
            batch size to a feed, or None for random values. Where the model does not run on random
            values, nothing is compared and a note says so.

    Raises:
        ModelError: the model does not run on the feeds given.
        PassError: a pass changed the outputs; it is named.
    """
    model = NameEverything()(model.clone()).model
    batch = free_and_verify_batch(model, check_feeds, _clean)
    feeds = _feeds(model, check_feeds, batch)
    reference = _Reference(model, feeds, may_fail=check_feeds is None)
    runner = PassRunner()
    unfolded, folded = _transform(batch.model, runner)
    for result in (folded, unfolded):
        if (reason := reference.difference(result)) is not None:
            _name_the_culprit(batch.model, reference, reason)
    notes = [
        *float_types_notes(model),
        *batch.notes,
        *reference.notes,
        *runner.notes,
        *_left_over(folded),
    ]
    notes = list(dict.fromkeys(notes))
    return Normalised(folded, unfolded, batch.batch_free, notes, batch.original_size)


def _name_the_culprit(model: ir.Model, reference: _Reference, reason: str) -> None:
    """Run all passes again and raise PassError at the first that changes the outputs."""
    _transform(model, PassRunner(reference.check))
    raise PassError(
        f"The normalised model gives other outputs than the original ({reason}), though no "
        "single pass does; please report this with the model."
    )


def _left_over(model: ir.Model) -> list[str]:
    """A note for each BatchNormalization that was not folded."""
    return [
        f'The BatchNormalization "{node.name}" stays, since {BatchNormToAffine().refusal(node)}.'
        for node in model.graph
        if is_op(node, "BatchNormalization")
    ]


def _clean(model: ir.Model) -> ir.Model:
    """A copy with everything folded that follows from a fixed batch."""
    runner = PassRunner()
    return runner.settle(runner.run(model.clone(), START)[0], CLEAN)


def _transform(model: ir.Model, runner: PassRunner) -> tuple[ir.Model, ir.Model]:
    """The unfolded and the folded model; the argument is not changed."""
    unfolded, _ = runner.run(model.clone(), START)
    unfolded = runner.settle(unfolded, CLEAN)
    unfolded = runner.settle(unfolded, (*FORMS, *CLEAN))
    unfolded, _ = runner.run(unfolded, FINISH)
    folded = runner.settle(unfolded.clone(), (*FOLD, *CLEAN))
    folded, _ = runner.run(folded, FINISH)
    return unfolded, folded


def _feeds(model: ir.Model, source: CheckFeeds, batch: FreedBatch) -> list[Feeds]:
    """The feeds in pieces that the original takes."""
    size = batch.original_size
    if size is None:
        return given_feeds(model, source, batch=2 if batch.batch_free else 1)
    return pieces_of(given_feeds(model, source, batch=size), size)


class _Reference:
    """The original's outputs, and their comparison with those of other models.

    Args:
        model: the original.
        feeds: its feeds.
        may_fail: whether the feeds are a guess; where the model does not run on them, a note says
            that nothing is compared.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds], *, may_fail: bool) -> None:
        self.notes: list[str] = []
        self._outputs: dict[bool, list[Outputs]] = {}
        self._names = [str(value.name) for value in model.graph.outputs]
        self._feeds = feeds
        self._noise: dict[str, float] = {}
        try:
            self._outputs = {
                optimise: run_model(model, feeds, optimise=optimise) for optimise in (False, True)
            }
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            reason = reason_of(error)
            if may_fail:
                self.notes.append(
                    f"The outputs were not compared with the original's, since it does not run "
                    f"on random inputs of {_sizes(feeds)}."
                )
                return
            raise ModelError(
                f"The model does not run on inputs of {_sizes(feeds)} ({reason}); "
                "give samples of the names, shapes and dtypes that it expects."
            ) from error
        # ONNX Runtime's own fusions round as ours do: what they change is not an error.
        self._noise = rounding_noise(self._names, self._outputs[False], self._outputs[True])

    def difference(self, model: ir.Model) -> str | None:
        for optimise, expected in self._outputs.items():
            try:
                outputs = run_model(model, self._feeds, optimise=optimise)
            except Exception as error:
                # ONNX Runtime's exceptions share no base class but Exception.
                return f"it no longer runs: {reason_of(error)}"
            reason = find_difference(self._names, expected, outputs, self._noise)
            if reason is not None:
                return reason
        return None

    def check(self, graph_pass: GraphPass, model: ir.Model) -> None:
        reason = self.difference(model)
        if reason is not None:
            raise PassError(
                f'The pass "{type(graph_pass).__name__}" changes what the model computes: '
                f"{reason}; please report this with the model."
            )


def _sizes(feeds: Sequence[Feeds]) -> str:
    """The shapes of the first feed, as text."""
    shapes = {name: list(array.shape) for name, array in feeds[0].items()}
    return ", ".join(f'"{name}" {shape}' for name, shape in shapes.items())


@dataclass(frozen=True)
class Original:
    """A normalised original.

    Attributes:
        path: the file of the original.
        interface: inputs and outputs of the file.
        preprocess: how an image becomes an input; None where unknown.
        normalised: its graph, with BatchNormalization folded and not.
        feeds: the feeds on which the outputs of the two were compared.
        batch: the batch size for samples; None keeps theirs.
    """

    path: Path
    interface: Interface
    preprocess: Preprocess | None
    normalised: Normalised
    feeds: Feeds
    batch: int | None = None

    @property
    def model(self) -> ir.Model:
        """The normalised model."""
        return self.normalised.model

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs of the normalised model."""
        return input_specs(self.model)

    @property
    def least(self) -> int:
        """The batch size of the original, where it fixes one; else 1."""
        return self.normalised.original_batch or 1

    def in_batches_of(self, size: int) -> Original:
        """The same original with this batch size, which its graphs declare."""
        for model in (self.normalised.model, self.normalised.unfolded):
            fix_batch(model, size)
        return replace(self, batch=size)


def normalise_original(loaded: Loaded, feeds: Feeds, *, whole_feeds: bool) -> Original:
    """Normalise an original, and choose its batch size.

    Args:
        loaded: the loaded model.
        feeds: the feeds to compare outputs on, before and after.
        whole_feeds: whether samples are whole feeds with batches of their own.
    """
    normalised = normalise(loaded.model, [feeds])
    original = Original(loaded.path, loaded.interface, loaded.preprocess, normalised, feeds)
    if whole_feeds or normalised.batch_free:
        return original
    return original.in_batches_of(original.least)
