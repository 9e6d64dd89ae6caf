"""The first stages of a run: the model, normalised, and its samples, which may have to be made."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.preprocess import Preprocess, find_preprocess
from onnxq.data.samples import notes_on_sameness, open_samples
from onnxq.errors import ModelError, OutputError
from onnxq.export.compact import float_bytes
from onnxq.export.save import save_model
from onnxq.load.float_types import halved_constants
from onnxq.load.interface import input_specs, interface_of
from onnxq.load.model import load_model
from onnxq.load.read import file_bytes
from onnxq.load.version import least_opset
from onnxq.normalise.free_batch import fix_batch
from onnxq.normalise.pipeline import normalise
from onnxq.options.recipe import Recipe
from onnxq.options.table import FIXED
from onnxq.plan import Plan, make_plan
from onnxq.plan.float_layers import check_float_layers
from onnxq.plan.size import saved_bytes
from onnxq.progress import Progress
from onnxq.runtime.dataset import Joined, Samples
from onnxq.runtime.session import Feeds
from onnxq.synthesise.adversarial import AdversarialGenerator
from onnxq.synthesise.images import Synthesis, image_space
from onnxq.synthesise.subject import Task, find_subject
from onnxq.synthesise.synthesise import synthesise
from onnxq.train.augment import Augmentation, check_images, chosen_kinds, image_layout
from onnxq.train.checkpoint import Checkpoint, checkpoint_folder
from onnxq.train.logits import find_logits
from onnxq.train.objective import OutputMatching
from onnxq.train.teacher import Targets, Teacher, keep_targets
from onnxq.version import VERSION

HELD_OUT_OF_SEARCH = 512
"""Samples held out at least where a search looks at the drop, as far as that leaves half."""

SYNTHESIS_SHARE = 0.5
"""Share of the time that samples may be made in."""

CLOSE_IN_SIZE = 0.8
"""Share of the original's size from which on the file's is worth a look before learning."""

ESTIMATE_ERROR = 0.05
"""Share of a file's size by which a plan may be mistaken about it."""

CHECK_SAMPLES = 2
"""Samples on which every pass of normalisation is checked."""


class Intake:
    """A model and its samples, on their way into a run.

    Args:
        path: the ONNX file.
        recipe: the options.
        progress: told where the work stands.
        quantizes: whether the model is to be quantized, so that it needs layers that can be.
        allow_worse: whether layers are quantized that are no smaller as integers, and a result is
            wanted that is no smaller than the original, or broken.

    Attributes:
        notes: sentences for the user, so far.
        interface: what the file takes and gives, once loaded.
        preprocess: how an image becomes an input, once loaded; None where nobody said it.
        normalised: the model, once loaded.
        check_feeds: what its normalisation was checked on.
        samples: all of them, once loaded or made.
        train: those that may be learned on.
        held_out: the others.
        synthesis: how samples were made, where there were none.
        unsaved: why the generator was not written that was to be kept; None where it was.
        seconds: what making them took.
        all_layers: whether no layer stays float for its size, once loaded.
        close_in_size: whether the file may turn out no smaller than the original, once loaded.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        progress: Progress,
        *,
        quantizes: bool = True,
        allow_worse: bool = False,
    ) -> None:
        self.path, self.recipe, self.progress = path, recipe, progress
        self.allow_worse = allow_worse
        self._layers: tuple[str, ...] = ()
        self.all_layers, self.close_in_size = True, False
        self._quantizes = quantizes
        self.notes: list[str] = []
        self.synthesis: Synthesis | None = None
        self.unsaved: OutputError | None = None
        self.seconds = 0.0
        self._least = 1
        self._batch: int | None = None
        self._given: Samples | None = None

    def load(
        self,
        data: Path | None,
        preprocess: Preprocess | None,
        generator: str | Path | None = None,
    ) -> None:
        """Read the model and the samples, if any, normalise the model, split the samples.

        Args:
            data: the samples; None where they are to be made.
            preprocess: how an image becomes an input; None looks beside and inside the model.
            generator: the file of a saved generator, which makes them.
        """
        original = load_model(self.path, least_opset(self.recipe.target))
        self.interface = interface_of(original)
        self._generator = None if generator is None else load_model(generator)
        self._generator_file = generator
        self.preprocess = preprocess or find_preprocess(self.path, original.metadata_props)
        samples = None if data is None else self._open(original, data)
        self.check_feeds = self._feeds_to_check(original, samples)
        self.normalised = normalise(original, [self.check_feeds])
        self.notes += self.normalised.notes
        if not find_logits(self.normalised.model):
            raise ModelError(
                f"'{self.path}' has nothing to match: no float output depends on its inputs; "
                "export the model with its scores, those that classes are found in, as an output."
            )
        if self._quantizes:
            smaller = not self.allow_worse
            self._check_plan(make_plan(self.normalised.model, self.recipe, smaller=smaller))
        if chosen_kinds(self.recipe.augment, synthetic=False):
            check_images(input_specs(self.normalised.model), self.preprocess)
        self._least = self.normalised.original_batch or 1
        stacked = samples is None or samples.batch is None
        if stacked and not self.normalised.batch_free:
            self._fix_batch(self._least)
        if data is None or samples is None:
            return
        if self.normalised.batch_free:
            samples = self._open(self.normalised.model, data)
        if samples.skipped:
            self.notes.append(
                f"{len(samples.skipped)} unreadable files were left out, "
                f"the first is '{samples.skipped[0]}'"
            )
        self.notes += [*samples.notes, *notes_on_sameness(samples)]
        self._use(samples)

    def _feeds_to_check(self, original: ir.Model, samples: Samples | None) -> Feeds:
        """What normalisation is checked on: samples, or noise where there are none."""
        if samples is not None:
            return next(samples.batches(CHECK_SAMPLES))
        space = image_space(input_specs(original), self.preprocess)
        noise = space.noise(np.random.default_rng(self.recipe.seed), space.batch or CHECK_SAMPLES)
        return {space.name: noise}

    def synthesise(
        self,
        folder: Path,
        checkpoint: Checkpoint | None,
        resume: bool,
        save_generator: str | Path | None = None,
        share: float = SYNTHESIS_SHARE,
    ) -> None:
        """Make samples from the float network alone.

        Args:
            folder: an existing one, for the images.
            checkpoint: where finished images are kept; None keeps none.
            resume: whether to go on from those.
            save_generator: the file to write the generator to that was trained.
            share: of the time, at most.
        """
        began, task = time.monotonic(), self._task(share)
        place = folder / "made"
        place.mkdir()
        model, preprocess = self.normalised.unfolded, self.preprocess
        samples, self.synthesis = synthesise(
            model, preprocess, task, place, self.progress, checkpoint, resume, self._generator
        )
        self.notes += self.synthesis.notes
        self.seconds += time.monotonic() - began
        self._use(samples)
        if save_generator is not None:
            assert self.synthesis.generator is not None
            try:
                save_model(self.synthesis.generator, Path(save_generator))
            except OutputError as error:
                # The long work goes on; the result tells of it.
                self.unsaved = error

    def _task(self, share: float = SYNTHESIS_SHARE) -> Task:
        recipe = self.recipe
        return Task(
            max(recipe.samples, self._least),
            recipe.synthesis_losses or {},
            recipe.seed,
            share * 60 * recipe.max_minutes,
            recipe.synthesis,
            recipe.generator_mode != FIXED,
        )

    def adversary(self, student: ir.Model) -> AdversarialGenerator:
        """The generator that samples were made with, ready to learn against a student."""
        assert self.synthesis is not None
        subject = find_subject(self.normalised.unfolded, self.preprocess)
        return AdversarialGenerator(subject, self._task(), self.synthesis, student)

    def targets(self, folder: Path, logits: list[str], whose: str) -> Targets:
        """The model's outputs on the samples to learn on, and on those held out.

        Args:
            folder: an existing one, for both.
            logits: names of the compared tensors.
            whose: they are, for progress.
        """
        teacher = Teacher(self.normalised.model, logits)

        def kept(name: str, samples: Samples) -> tuple[Joined, OutputMatching]:
            (folder / name).mkdir()
            self.progress.start(f"{whose} outputs, {name} slice", len(samples))
            found = keep_targets(teacher, samples, folder / name, self.progress.at)
            self.progress.finish()
            return found

        train, objective = kept("train", self.train)
        held_out, _ = kept("held-out", self.held_out)
        return Targets(teacher, train, held_out, objective)

    def augmentation(self, teacher: Teacher, *, weights: bool) -> Augmentation | None:
        """How the recipe changes training samples in each epoch; None where it leaves them.

        Args:
            teacher: computes the outputs on the augmented ones.
            weights: whether weights are learned on them.
        """
        recipe = self.recipe
        kinds = chosen_kinds(recipe.augment, weights and self.synthesis is not None)
        layout = image_layout(input_specs(self.normalised.model), self.preprocess)
        if layout is None or not kinds:
            return None
        return Augmentation(teacher, kinds, layout, recipe.seed)

    def _fix_batch(self, size: int) -> None:
        """Run all samples in batches of one size, the only one that a model takes."""
        self._batch = size
        for model in (self.normalised.model, self.normalised.unfolded):
            fix_batch(model, size)

    def insist_on_batch(self, size: int) -> None:
        """The same for the sake of another model that reads the samples."""
        self._fix_batch(size)
        if self._given is not None:
            self._use(self._given)

    def _use(self, samples: Samples) -> None:
        """Split the samples."""
        recipe = self.recipe
        self._given, self.samples = samples, samples.in_batches_of(self._batch)
        more = {"least": HELD_OUT_OF_SEARCH} if recipe.searches else {}
        batch = self.samples.batch or self._least
        self.train, self.held_out = self.samples.split(seed=recipe.seed, batch=batch, **more)

    def _open(self, model: ir.Model, data: Path) -> Samples:
        recipe = self.recipe
        count = max(recipe.samples, self._least)
        return open_samples(data, input_specs(model), self.preprocess, count, recipe.seed)

    def _check_plan(self, plan: Plan) -> None:
        check_float_layers(plan, self.recipe)
        self._layers = tuple(plan.layers)
        self.all_layers = len(make_plan(self.normalised.model, self.recipe).layers) == len(
            plan.layers
        )
        if plan.layers:
            self._check_bytes(plan)
            return
        self._check_gain(plan)
        reasons = "; ".join(f"'{n}': {r}" for n, r in list(plan.left_alone.items())[:3])
        raise ModelError(
            f"'{self.path}' has nothing to quantize: no Conv, ConvTranspose, Gemm or MatMul "
            f"with constant float weights" + (f" ({reasons})" if reasons else "")
        )

    def _check_gain(self, plan: Plan) -> None:
        """Raises ModelError where layers could be quantized, and none would be smaller."""
        could = make_plan(self.normalised.model, self.recipe).layers
        if not could:
            return
        first = next(iter(could))
        raise ModelError(
            f"'{self.path}' would not get smaller: none of its layers takes fewer bytes as "
            f"integers ('{first}': {plan.left_alone[first]}); leave it as it is, or add "
            "--allow-worse to quantize it all the same"
        )

    def _check_bytes(self, plan: Plan) -> None:
        """Raises ModelError where the plan shows that the file would be no smaller."""
        model, size = self.normalised.model, file_bytes(self.path)
        floats = float_bytes(model)
        expected = floats - saved_bytes(model.graph, plan, halved_constants(model).keys())
        self.close_in_size = expected > CLOSE_IN_SIZE * size
        if self.allow_worse or self.recipe.searches or (1 - ESTIMATE_ERROR) * expected < size:
            return
        reason = f"as floats they take {floats:,}" if floats > size else "most of them stay float"
        raise ModelError(
            f"'{self.path}' would not get smaller: its {size:,} bytes would become about "
            f"{expected:,} with {len(plan.layers)} layers as integers ({reason}); leave it as it "
            "is, or add --allow-worse to quantize it all the same"
        )

    def checkpoint(self, out: Path | None, data: Path | None, **more: str) -> Checkpoint | None:
        """Where learning keeps its state: beside the output; `more` is what else makes the run."""
        if out is None:
            return None
        made_by = self._generator_file
        identity = {
            **more,
            "model": file_digest(self.path),
            "generator": "none" if made_by is None else file_digest(Path(made_by)),
            "data": "none" if data is None else f"{data.absolute()} {self.samples.count}",
            "recipe": self.recipe.to_json(),
            "layers": hashlib.sha256("\n".join(self._layers).encode()).hexdigest(),
            "version": VERSION,
        }
        return Checkpoint(checkpoint_folder(out), identity)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
