"""One run of the main job: each stage as a method, and the state between them."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxq.export.compact import export
from onnxq.export.interface import restore_types
from onnxq.export.metadata import expected_bytes
from onnxq.forms.fallback import fallback_notes
from onnxq.forms.forms import Variant, Variants
from onnxq.intake import Intake
from onnxq.learn.fresh import FreshImages
from onnxq.learn.learn import learn, learns_weights
from onnxq.load.read import file_bytes
from onnxq.options.recipe import Recipe
from onnxq.options.table import AUTO, FIXED
from onnxq.search.evaluator import TrialCache
from onnxq.search.search import SearchResult
from onnxq.search.stage import SearchStage
from onnxq.search.sweep import sweep
from onnxq.search.table import SweepTable
from onnxq.student.student import bake
from onnxq.train.augment import Augmentation, Transform
from onnxq.train.batch_size import shard_size
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned
from onnxq.train.logits import find_logits
from onnxq.verify.collect import collect_metrics
from onnxq.verify.metadata import check_smaller, write_metadata
from onnxq.verify.metrics import Metrics
from onnxq.verify.verdict import check_verdict, judge
from onnxq.verify.verify import Exported, verify

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
        targets: the samples with the original's outputs, once prepared.
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
        self.targets = intake.targets(folder, logits, "original's")
        self._variants = Variants(
            self.recipe,
            intake.train,
            self.targets.held_out,
            self.targets.objective,
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
        train, learns = self.targets.train, self.recipe.learn
        # A trial learns on the images that are there.
        learned = learn(
            variant,
            train,
            learns,
            budget,
            progress=self._progress,
            transform=self._augmentation(variant),
        )
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
            variant: the student and the quantization parameters to start from.
            checkpoint: where to keep the state; None keeps none.
            resume: whether to go on from that state.
        """
        self._checkpoint = checkpoint
        learned = learn(
            variant,
            self.targets.train,
            self.recipe.learn,
            self._budget(),
            progress=self._progress,
            checkpoint=checkpoint,
            resume=resume,
            transform=self._transform(variant),
        )
        made = self._intake.synthesis
        if self.recipe.generator_mode != FIXED and made is not None and not made.tuning:
            learned.notes.append(GENERATOR_STAYED)
        return learned

    def _transform(self, variant: Variant) -> Transform | None:
        """What becomes of the training samples: a generator that goes on, then augmentation."""
        augmentation = self._augmentation(variant)
        if self.recipe.generator_mode == FIXED:
            return augmentation
        source = self._intake.adversary(variant.student.model)
        folder = self._folder / "fresh"
        folder.mkdir()
        return FreshImages(
            self.targets.train, self.targets.teacher, source, variant.student, folder,
            self.recipe.seed, augmentation,
        )  # fmt: skip

    def _augmentation(self, variant: Variant) -> Augmentation | None:
        recipe, plan = self.recipe, variant.student.plan
        shared = recipe.bias_centroids is not None
        weights = learns_weights(recipe.learn, plan, shared_biases=shared)
        return self._intake.augmentation(self.targets.teacher, weights=weights)

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
        intake = self._intake
        model = export(variant.student, variant.qparams, intake.interface)
        if not intake.allow_worse:
            check_smaller(model, intake.path, self.recipe, intake.preprocess)
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
        intake, plan = self._intake, variant.student.plan
        variant.held_out.release()
        student = partial(bake, variant.student, variant.qparams)
        exported = Exported(intake.path, intake.normalised.model, student, model, plan)
        samples = intake.held_out.in_batches_of(intake.normalised.original_batch)
        measured = verify(exported, samples, self._shard, self._progress)
        verdict = judge(measured.outputs, self.recipe)
        if verdict is not None and not intake.allow_worse:
            check_verdict(verdict, self.recipe, resumable=self._resumable())
        told = [] if verdict is None else [str(verdict)]
        self.notes += [*learned.notes, *measured.notes, *told, *fallback_notes(variant)]
        metrics = collect_metrics(
            intake.path,
            measured,
            variant,
            learned,
            self.found,
            intake.synthesis,
            intake.samples.count,
            notes=self.notes,
            verdict="".join(told),
        )
        restore_types(model, intake.interface)
        return write_metadata(model, metrics, self.recipe, intake.preprocess)

    def _resumable(self) -> bool:
        """Whether a run that allows a worse result can go on from this one's checkpoint."""
        kept = self._checkpoint is not None and self._checkpoint.folder.is_dir()
        # With other layers in integers it is another run.
        return kept and self._intake.all_layers


def _exported_bytes(variant: Variant, recipe: Recipe) -> int:
    """The size of the file of a variant under a recipe."""
    return expected_bytes(export(variant.student, variant.qparams), recipe)
