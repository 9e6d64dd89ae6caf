"""One run of the main job: each stage as a method, and the state between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxq.data.preprocess import METADATA_KEY as PREPROCESS_KEY
from onnxq.errors import WorseError
from onnxq.export.compact import export
from onnxq.export.interface import restore_types
from onnxq.export.save import describe, model_bytes
from onnxq.forms.forms import PLAIN, Variant, Variants
from onnxq.intake import Intake
from onnxq.learn.fresh import FreshImages
from onnxq.learn.learn import learn, learns_weights
from onnxq.load.limits import COMPRESSED_KEY
from onnxq.load.read import file_bytes
from onnxq.options.contradictions import FIXED
from onnxq.options.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.options.recipe import Recipe
from onnxq.options.table import AUTO
from onnxq.plan.float_layers import WIDE
from onnxq.plan.regions import FALLBACK_REASON
from onnxq.search.evaluator import TrialCache
from onnxq.search.search import SearchResult
from onnxq.search.stage import SearchStage
from onnxq.search.sweep import sweep
from onnxq.search.table import SweepTable
from onnxq.student.student import bake
from onnxq.train.augment import Augmentation, Changes
from onnxq.train.batch_size import shard_size
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned
from onnxq.train.logits import find_logits
from onnxq.verify.exported import shipped_model
from onnxq.verify.metrics import LEAST_METRICS, SHORT_METRICS, Metrics
from onnxq.verify.metrics import METADATA_KEY as METRICS_KEY
from onnxq.verify.verdict import judge, names_method, size_remedy
from onnxq.verify.verify import Exported, verify
from onnxq.version import VERSION

LITTLE_SMALLER = 0.9
"""Share of the original's size above which a note says why the file is no smaller."""

METADATA_BYTES = 1024
"""Metrics, notes and preprocessing in a file, about."""

TRIAL_EPOCHS = 2
"""Passes over the samples in which a search learns what it tries."""

TRIALS_SHARE = 0.5
"""Share of the time that a search may learn in."""

GENERATOR_STAYED = (
    "the generator did not go on learning, since nothing was learned by gradients; --learn steps "
    "or --learn weights does"
)


class Run:
    """The state of one run between its stages.

    Args:
        intake: the model and its samples, loaded.

    Attributes:
        recipe: the options; a search puts what it found into them.
        notes: sentences for the user, so far.
        train_outputs: the original's outputs on the training slice, once prepared.
        found: what a search found, where the recipe wanted one.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake, self._progress = intake, intake.progress
        self.recipe, self.notes = intake.recipe, list(intake.notes)
        self.found: SearchResult | None = None
        self._spent = intake.seconds
        self._checkpoint: Checkpoint | None = None

    def prepare(self, folder: Path) -> Variant:
        """The original's outputs, then the best form of the model, calibrated."""
        intake, teacher = self._intake, self._intake.normalised.model
        logits = find_logits(teacher)
        self._folder = folder
        self._shard = self.recipe.batch_size or shard_size(teacher)
        self.train_outputs, held_out = intake.outputs(folder, logits, "original's")
        self._variants = Variants(
            self.recipe,
            intake.train,
            self.train_outputs,
            held_out,
            self._shard,
            self._progress,
            smaller=not intake.allow_worse,
        )
        return self._variants.choose(teacher)

    def sweep(self, variant: Variant) -> SweepTable:
        """The effect of each setting of each layer alone, on the held-out samples."""
        table = sweep(
            variant.model,
            variant.student,
            variant.qparams,
            self._intake.held_out,
            codebooks=self.recipe.codebook == AUTO,
            calibration=self.recipe.calibration,
            batch_size=self._shard,
            progress=self._progress,
        )
        return replace(table, made=self._intake.synthesis is not None)

    def search(self, variant: Variant, checkpoint: Checkpoint | None, resume: bool) -> Variant:
        """The variant with settings found for each layer, where the recipe wants them searched."""
        if not self.recipe.searches:
            return variant
        stage = SearchStage(
            self.recipe,
            variant,
            self._variants,
            lambda: self.sweep(variant),
            self._trial,
            file_bytes(self._intake.path),
            _exported_bytes,
            TrialCache(checkpoint, resume=resume),
            lambda: self._trial_seconds() > 0,
        )
        self.found = stage.run()
        self.recipe = self.found.recipe
        self.notes += self.found.notes()
        return self._variants.remake(variant, self.recipe)

    def _trial(self, variant: Variant) -> Variant:
        """A variant after a little learning."""
        began, budget = time.monotonic(), self._budget()
        epochs = min(TRIAL_EPOCHS, budget.epochs or TRIAL_EPOCHS)
        budget = replace(budget, epochs=epochs, max_seconds=self._trial_seconds())
        train, learns = self.train_outputs, self.recipe.learn
        # A trial learns on the images that are there.
        changes = self._augmentation(variant)
        learned = learn(variant, train, learns, budget, progress=self._progress, changes=changes)
        self._spent += time.monotonic() - began
        return self.finish(variant, learned)

    def _trial_seconds(self) -> float:
        """What the trials of a search may still take: half of the time is for the model found."""
        return max(0.0, TRIALS_SHARE * 60 * self.recipe.max_minutes - self._spent)

    def learn(
        self, variant: Variant, checkpoint: Checkpoint | None = None, resume: bool = False
    ) -> Learned:
        """What the recipe wants trained, where the graph allows it.

        Args:
            variant: the student and the numbers to start from.
            checkpoint: where to keep the state; None keeps none.
            resume: whether to go on from that state.
        """
        self._checkpoint = checkpoint
        learned = learn(
            variant,
            self.train_outputs,
            self.recipe.learn,
            self._budget(),
            progress=self._progress,
            checkpoint=checkpoint,
            resume=resume,
            changes=self._changes(variant),
        )
        made = self._intake.synthesis
        if self.recipe.generator_mode != FIXED and made is not None and not made.tuning:
            learned.notes.append(GENERATOR_STAYED)
        return learned

    def _changes(self, variant: Variant) -> Changes | None:
        """What becomes of the training samples: a generator that goes on, then augmentation."""
        augmentation = self._augmentation(variant)
        if self.recipe.generator_mode == FIXED:
            return augmentation
        source = self._intake.adversary(variant.student.model)
        folder = self._folder / "fresh"
        folder.mkdir()
        return FreshImages(
            self.train_outputs, source, variant.student, folder, self.recipe.seed, augmentation
        )

    def _augmentation(self, variant: Variant) -> Augmentation | None:
        recipe, plan = self.recipe, variant.student.plan
        shared = recipe.bias_centroids is not None
        weights = learns_weights(recipe.learn, plan, shared_biases=shared)
        return self._intake.augmentation(self.train_outputs, weights=weights)

    def _budget(self) -> Budget:
        recipe = self.recipe
        return Budget(
            epochs=recipe.epochs,
            lr=recipe.lr,
            optimizer=recipe.optimizer,
            loss=recipe.loss,
            shard_size=self._shard,
            max_seconds=max(0.0, 60 * recipe.max_minutes - self._spent),
            seed=recipe.seed,
        )

    def finish(self, variant: Variant, learned: Learned) -> Variant:
        """The variant with what was learned, its biases corrected anew where that helps."""
        score = variant.score_of(learned.qparams) if learned.improved else variant.score
        found = replace(variant, qparams=learned.qparams, score=score)
        return self._variants.corrected(found)

    def export(self, variant: Variant) -> ir.Model:
        """The deployable model, as yet with what its metadata holds at least.

        Raises:
            WorseError: its file would be no smaller than the original's, and nobody allowed that.
        """
        model = export(variant.student, variant.qparams, self._intake.interface)
        size = file_bytes(self._intake.path)
        *_, least = self._metadata(Metrics(size, 0))
        found = describe(model, least)
        if found >= size and not self._intake.allow_worse:
            raise WorseError(
                f"the compressed file would have {found:,} bytes, and '{self._intake.path}' has "
                f"{size:,}: nothing was written; {size_remedy(self.recipe)}, and --allow-worse "
                "writes it all the same"
            )
        return model

    def check_size(self, variant: Variant) -> None:
        """Find out before anything is learned whether the file will be smaller.

        Raises:
            WorseError: as `export`; a search finds sizes of its own.
        """
        if self._intake.close_in_size and not self.recipe.searches:
            self.export(variant)

    def verify(self, variant: Variant, learned: Learned, model: ir.Model) -> Metrics:
        """The metrics of the deployable model, which are put into its metadata.

        Raises:
            WorseError: the held-out samples show that it is broken, and neither a method was named
                nor a bad result allowed.
        """
        plan = variant.student.plan
        variant.held_out.release()
        student = partial(bake, variant.student, variant.qparams)
        exported = Exported(self._intake.path, self._intake.normalised.model, student, model, plan)
        samples = self._intake.held_out.in_batches_of(self._intake.normalised.original_batch)
        metrics = verify(exported, samples, self._shard, self._progress)
        metrics.learning = {
            "unit": learned.unit,
            "start_score": learned.start_score,
            "learned_score": learned.score,
            "score": variant.score,
            "epoch": learned.epoch,
            "epochs_run": len(learned.history),
            "scores": _finite(learned.history),
        }
        metrics.curve = _curve(learned)
        if self.found is not None:
            metrics.search = self.found.to_fields()
        if self._intake.synthesis is not None:
            metrics.synthesis = self._intake.synthesis.to_fields()
        metrics.equalization = "none" if variant.name == PLAIN else variant.name
        metrics.bias_correction = variant.corrected
        if variant.bias_cost is not None and self.recipe.bias_centroids is not None:
            own, shared = variant.bias_cost
            metrics.bias_centroids = {
                "count": self.recipe.bias_centroids,
                "own": own,
                "shared": shared,
            }
        metrics.samples, metrics.held_back = len(self._intake.samples), len(self._intake.held_out)
        self.notes += [*learned.notes, *metrics.notes]
        metrics.notes = self.notes
        self._judge(metrics)
        floats = sum(spec.reason == FALLBACK_REASON for spec in plan.layers.values())
        if floats:
            self.notes.append(
                f"{floats} of {len(plan.layers)} layers run in float with integer weights: 8 bits "
                "are too few for the tensors around them, as samples showed (--no-spare keeps "
                "them in integers)"
            )
        kept_at_8_bits = variant.fallback if (self.recipe.activation_bits or WIDE) < WIDE else ()
        if kept_at_8_bits:
            self.notes.append(
                f"{len(kept_at_8_bits)} of {len(plan.tensors)} tensors have 8 bits: "
                f"{self.recipe.activation_bits} are too few for them, as samples showed "
                "(--no-spare keeps theirs)"
            )
        restore_types(model, self._intake.interface)
        self._describe(model, metrics)
        if metrics.size_after > LITTLE_SMALLER * metrics.size_before:
            self.notes.append(_size_note(metrics))
        return metrics

    def _judge(self, metrics: Metrics) -> None:
        """Note what is wrong with the result, or refuse it."""
        verdict = judge(metrics, self.recipe)
        if verdict is None:
            return
        if verdict.broken and not self._intake.allow_worse and not names_method(self.recipe):
            # With other layers in integers it is another run.
            at_once = ", at once with --resume" if self._resumable() else ""
            raise WorseError(
                f"the compressed model is broken: {verdict.text}; nothing was written, and "
                f"--allow-worse writes it all the same{at_once}"
            )
        kind = "broken" if verdict.broken else "doubtful"
        metrics.verdict = f"the compressed model is {kind}: {verdict.text}"
        self.notes.append(metrics.verdict)

    def _resumable(self) -> bool:
        """Whether a run that allows a worse result can go on from this one's checkpoint."""
        kept = self._checkpoint is not None and self._checkpoint.folder.is_dir()
        return kept and self._intake.all_layers

    def _describe(self, model: ir.Model, metrics: Metrics) -> None:
        """Put version, recipe, preprocessing and metrics into the model's metadata.

        Less of it where all of it would make the file larger than the original.
        """
        for entries in self._metadata(metrics):
            metrics.size_after = describe(model, entries)
            if metrics.size_after < metrics.size_before:
                break
        metrics.shipped_after = shipped_model(model)

    def _metadata(self, metrics: Metrics) -> Iterator[Callable[[int], dict[str, str]]]:
        """What the file may say of itself, from all to the least, given its size."""
        for spelt_out, wanted in ((True, None), (False, SHORT_METRICS), (False, LEAST_METRICS)):
            entries = {
                COMPRESSED_KEY: VERSION,
                RECIPE_KEY: self.recipe.to_json(spelt_out=spelt_out),
            }
            if self._intake.preprocess is not None:
                entries[PREPROCESS_KEY] = self._intake.preprocess.to_json()
            yield partial(_of_size, entries, metrics, wanted)


def _exported_bytes(variant: Variant, recipe: Recipe) -> int:
    """The size of the file of a variant under a recipe."""
    model = export(variant.student, variant.qparams)
    return model_bytes(model) + METADATA_BYTES + len(recipe.to_json())


def _of_size(
    entries: dict[str, str], metrics: Metrics, wanted: Collection[str] | None, size: int
) -> dict[str, str]:
    """The entries and some of the metrics of a file of so many bytes."""
    metrics.size_after = size
    return {**entries, METRICS_KEY: metrics.to_metadata(wanted)}


def _curve(learned: Learned) -> dict[str, list[float | None]]:
    """Error and agreement against minutes."""
    minutes = [seconds / 60 for seconds, _, _ in learned.curve]
    scores, agreement = ([point[i] for point in learned.curve] for i in (1, 2))
    columns = {"minutes": minutes, "scores": scores, "agreement": agreement}
    return {name: _finite(values) for name, values in columns.items() if values}


def _finite(values: Iterable[float]) -> list[float | None]:
    """JSON has no word for what is not finite."""
    return [value if math.isfinite(value) else None for value in values]


def _size_note(metrics: Metrics) -> str:
    ratio = metrics.size_after / max(metrics.size_before, 1)
    if ratio > 2:
        reason = "the original computes weights that are written out here"
    else:
        reason = "few of its bytes are weights of layers that can be quantized"
    return f"the file has {ratio:.2f} times the original's size: {reason}"
