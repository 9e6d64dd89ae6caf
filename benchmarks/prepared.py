"""A model calibrated and ready to learn, as `compress` has it, to measure single stages on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq import Preprocess, Recipe
from onnxq.export.compact import export
from onnxq.export.interface import restore_types
from onnxq.forms.fallback import after_learning, fall_back, slack
from onnxq.forms.quantization import Quantization
from onnxq.forms.ranges import choose_ranges
from onnxq.forms.variant import Variant, choose_form
from onnxq.learn.fresh import augmentation
from onnxq.learn.learn import learn
from onnxq.load.read import file_bytes, model_files
from onnxq.normalise.pipeline import Original
from onnxq.pipeline import read, run_original, split
from onnxq.progress import Silent
from onnxq.runtime.dataset import Samples
from onnxq.train.budget import STEP_BYTES, recipe_budget, shard_size
from onnxq.train.checkpoint import Job
from onnxq.train.held_out import Learned
from onnxq.verify.metrics import Metrics
from onnxq.verify.opened import shipped_files
from onnxq.verify.result import write_metadata


@dataclass(frozen=True)
class Prepared:
    """The best form of a model, with what it was made from."""

    original: Original
    held_out: Samples
    quantize: Quantization
    variant: Variant

    def learn(self, recipe: Recipe) -> Learned:
        """What a recipe trains, in the time that it states."""
        targets = self.quantize.targets
        budget = recipe_budget(recipe, self.quantize.batch_size, 60 * recipe.max_minutes)
        transform = augmentation(self.variant, targets.teacher, self.original, synthetic=False)
        return learn(self.variant, targets.train, recipe.learn, budget, transform=transform)

    def final(self, learned: Learned) -> Variant:
        """The variant with what was learned, its biases corrected anew where that helps."""
        return after_learning(self.variant.with_learned(learned), self.quantize, Silent())

    def export(self, variant: Variant) -> tuple[ir.Model, Metrics]:
        """The deployable model, and the sizes of its file and of the original's."""
        path = self.original.path
        model = export(variant.student, variant.qparams, self.original.interface)
        restore_types(model, self.original.interface)
        sizes = Metrics(file_bytes(path), 0, shipped_before=shipped_files(model_files(path)))
        return model, write_metadata(model, sizes, variant.recipe, self.original.preprocess)


def prepare(
    model: Path, data: Path, recipe: Recipe, folder: Path, preprocess: Preprocess | None = None
) -> Prepared:
    """Load, normalise, calibrate and choose the best form.

    Args:
        model: the ONNX file.
        data: unlabelled samples.
        recipe: the options.
        folder: an existing one, for the original's outputs.
        preprocess: how an image becomes an input.
    """
    job = Job(model, data, recipe, Silent(), preprocess)
    original, samples = read(job, [])
    assert samples is not None
    size = recipe.batch_size or shard_size(original.model, limit=STEP_BYTES)
    train, held_out = split(original, samples, recipe)
    targets = run_original(job, original, (train, held_out), folder)
    quantize = Quantization(train, targets, size, smaller=True)
    variant = choose_ranges(choose_form(original.model, recipe, quantize))
    variant = fall_back(variant, quantize, Silent(), slack(recipe))
    return Prepared(original, held_out, quantize, variant)
