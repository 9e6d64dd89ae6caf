"""The pipeline: one call per stage, from a model file to a compressed one.

load -> normalise -> plan -> calibrate -> student -> forms -> search -> learn -> export -> verify

`compress` runs this line, `read` its first two stages. `Quantization` runs plan, calibrate and
student, which forms and searches repeat. Synthetic images are generated after normalise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import notes_on_samples, open_samples, split_samples
from onnxq.export.compact import check_plan, export, leaves_layers_float, variant_bytes
from onnxq.export.interface import restore_types
from onnxq.export.save import check_files, locked, save_model, try_to_save
from onnxq.forms.fallback import after_learning, fall_back, fallback_notes, learning_share, slack
from onnxq.forms.quantization import Quantization
from onnxq.forms.ranges import choose_ranges
from onnxq.forms.variant import Variant, choose_form, requantize
from onnxq.graph.meanings import check_task
from onnxq.learn.fresh import augmentation, notes_on_generator, training_transform
from onnxq.learn.learn import Trial, learn, uses_gradients
from onnxq.load.model import load_model, load_original
from onnxq.load.read import file_bytes
from onnxq.load.version import least_opset
from onnxq.normalise.pipeline import Original, normalise, normalise_original
from onnxq.options.contradictions import check_data, check_generator_files
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.layers import check_float_layers
from onnxq.progress import Progress
from onnxq.runtime.clock import PASS, Clock, TimeLeft, cuts
from onnxq.runtime.costs import Costs, stage
from onnxq.runtime.dataset import Samples
from onnxq.search.evaluator import TrialCache
from onnxq.search.search import SearchResult
from onnxq.search.stage import SearchStage
from onnxq.search.sweep import sweep_variant
from onnxq.search.table import SweepTable
from onnxq.student.student import bake
from onnxq.synthesise.images import Synthesis, check_feeds
from onnxq.synthesise.subject import recipe_task
from onnxq.synthesise.synthesise import synthesise
from onnxq.train.augment import check_augmentation
from onnxq.train.budget import STEP_BYTES, recipe_budget, shard_size
from onnxq.train.checkpoint import Checkpoint, Job, make_job, run_folder
from onnxq.train.objective import find_logits, require_logits
from onnxq.train.teacher import Targets, find_targets, samples_in_time
from onnxq.verify.result import PlanReport, Result, check_smaller, collect_metrics, write_metadata
from onnxq.verify.verdict import check_verdict, find_verdict
from onnxq.verify.verify import Exported, Measurements, verify

SYNTHESIS_SHARE = 0.5
"""Share of the time that may be spent on generating samples."""


def plan_model(
    model: str | Path, recipe: Recipe | None = None, *, allow_worse: bool = False
) -> PlanReport:
    """Load, normalise and plan a model; nothing is trained or written."""
    recipe = recipe or Recipe()
    normalised = normalise(load_model(Path(model), least_opset(recipe.target)), None)
    plan = make_plan(normalised.model, recipe, smaller=not allow_worse)
    check_float_layers(plan, recipe)
    return PlanReport(normalised.model, plan, normalised.notes)


def compress(
    model: str | Path,
    data: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    preprocess: Preprocess | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    generator: str | Path | None = None,
    save_generator: str | Path | None = None,
    allow_worse: bool = False,
) -> Result:
    """Quantize a float ONNX model with unlabelled samples, or with synthetic images.

    Args:
        model: the ONNX file.
        data: the samples: a folder or a file; None where the recipe is data-free.
        recipe: the options; None means the defaults.
        out: the file to write; None writes none.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        force: whether `out` may be overwritten.
        resume: whether to resume from the checkpoint of a stopped run.
        progress: told how far each stage is.
        generator: for a data-free recipe, the file of a saved generator of samples.
        save_generator: the file to write the trained generator to.
        allow_worse: whether layers that are no smaller as integers are quantized too, and a result
            is written that is no smaller than the original, or broken.

    Raises:
        WorseError: the result is no smaller than the original, or held-out samples show that it is
            broken; a broken one is written where the recipe names the method.
        OnnxqError: any other user error.
    """
    recipe = recipe or Recipe()
    check_data(recipe, data)
    check_generator_files(recipe, generator, save_generator)
    job = make_job(
        model, data, recipe, progress, preprocess, generator, save_generator, out,
        resume=resume, allow_worse=allow_worse,
    )  # fmt: skip
    check_files(job.model, force, output=job.out, generator=job.save_generator)
    clock = Clock(recipe.max_minutes, recipe.effort)
    job = replace(job, progress=TimeLeft(job.progress, clock))
    with Costs().running() as costs:
        return _compress(job, costs, clock)


def _compress(job: Job, costs: Costs, clock: Clock) -> Result:
    """The pipeline, from the original's file to the written one."""
    recipe, progress, notes = job.recipe, job.progress, list[str]()
    generator = None if job.generator is None else load_model(job.generator)
    original, samples = read(job, notes)
    plan = make_plan(original.model, recipe, smaller=not job.allow_worse)
    close = check_plan(plan, original.model, job.model, recipe, allow_worse=job.allow_worse)
    checkpoint = job.checkpoint(samples, plan.layers)
    with locked(job.out), run_folder(checkpoint, job.resume) as folder:
        synthesis, unsaved = None, None
        if samples is None:
            samples, synthesis = make_samples(job, original, generator, folder, checkpoint, clock)
            unsaved = try_to_save(synthesis.generator, job.save_generator)
            notes += synthesis.notes
        size = _batch_size(original, recipe)
        samples = samples_in_time(original.model, samples, original.batch, clock, recipe.seed)
        costs.set_model(original.model, samples.count, original.batch)
        train, held_out = split(original, samples, recipe)
        targets = run_original(job, original, (train, held_out), folder)
        quantize = Quantization(train, targets, size, not job.allow_worse, progress, clock)
        variant = choose_ranges(choose_form(original.model, recipe, quantize))
        variant = fall_back(variant, quantize, progress, slack(recipe))
        if close and not recipe.searches:
            _export(job, original, variant)
        found = None
        if recipe.searches:
            found = _search(
                job, original, variant, quantize, targets, held_out, size, checkpoint, clock,
                synthetic=synthesis is not None,
            )  # fmt: skip
            variant = requantize(variant, found.recipe, quantize)
            notes += found.notes()
        left = clock.left(learning_share(variant))
        budget = recipe_budget(recipe, size, left, clock.seconds(PASS))
        transform = training_transform(variant, targets, original, synthesis, folder)
        learned = learn(
            variant, targets.train, recipe.learn, budget,
            progress=progress, checkpoint=checkpoint, resume=job.resume, transform=transform,
        )  # fmt: skip
        notes += [*learned.notes, *notes_on_generator(recipe, synthesis)]
        variant = after_learning(variant.with_learned(learned), quantize, progress)
        model = _export(job, original, variant)
        measured = _verify(job, original, variant, model, held_out, size)
        said = _verdict(job, original, plan, checkpoint, measured, variant.recipe)
        notes += [*clock.notes, *measured.notes, *said, *fallback_notes(variant)]
        engine = job.engine if uses_gradients(recipe, variant.student.plan) else ""
        metrics = collect_metrics(
            job.model, measured, variant, learned, found, synthesis, samples.count,
            costs=costs.rows(), engine=engine, notes=notes,
            verdict="; ".join([*said, *cuts(notes)]),
        )  # fmt: skip
        metrics = write_metadata(model, metrics, variant.recipe, original.preprocess)
        if job.out is not None:
            save_model(model, job.out)
    plan, told = variant.student.plan, list(metrics.notes)
    return Result(model, job.out, metrics, variant.recipe, plan, told, synthesis, unsaved)


def _batch_size(original: Original, recipe: Recipe) -> int:
    """Samples in one run of a student: as asked for, or as memory allows."""
    return recipe.batch_size or shard_size(original.model, limit=STEP_BYTES)


def _verdict(
    job: Job,
    original: Original,
    plan: Plan,
    checkpoint: Checkpoint | None,
    measured: Measurements,
    recipe: Recipe,
) -> list[str]:
    """What the verdict says of a result that is written; of any other it is the error raised."""
    verdict = find_verdict(measured.outputs, recipe)
    if verdict is None:
        return []
    if not job.allow_worse:
        # A run that allows a worse result must not quantize other layers than this one.
        kept = checkpoint is not None and checkpoint.folder.is_dir()
        resumable = kept and not leaves_layers_float(plan, original.model, job.recipe)
        check_verdict(verdict, recipe, resumable=resumable)
    return [str(verdict)]


def _search(
    job: Job,
    original: Original,
    variant: Variant,
    quantize: Quantization,
    targets: Targets,
    held_out: Samples,
    size: int,
    checkpoint: Checkpoint | None,
    clock: Clock,
    *,
    synthetic: bool,
) -> SearchResult:
    """A recipe with a setting for each layer, found by trials of whole models in the best form."""
    progress = job.progress
    augment = partial(augmentation, teacher=targets.teacher, original=original, synthetic=synthetic)
    trial = Trial(targets.train, size, augment, clock, progress)
    sweep = partial(sweep_variant, variant, held_out, size, progress, synthetic=synthetic)
    cache = TrialCache(checkpoint, resume=job.resume)
    search = SearchStage(
        job.recipe, variant, quantize, sweep, trial, file_bytes(job.model), variant_bytes, cache
    )
    return search.run()


@stage("load, normalise")
def read(job: Job, notes: list[str]) -> tuple[Original, Samples | None]:
    """The model, loaded and normalised, and its samples; None where they are to be generated."""
    recipe, data = job.recipe, job.data
    loaded = load_original(job.model, least_opset(recipe.target), job.preprocess)
    samples = None
    if data is not None:
        samples = open_samples(data, loaded.inputs, loaded.preprocess, recipe.samples, recipe.seed)
    feeds = check_feeds(samples, loaded.inputs, loaded.preprocess, recipe.seed)
    whole = samples is not None and samples.batch is not None
    original = normalise_original(loaded, feeds, whole_feeds=whole)
    notes += original.normalised.notes
    require_logits(original.model, job.model)
    check_task(original.model.graph, recipe.task)
    check_augmentation(recipe.augment, original.inputs, original.preprocess)
    if data is None or samples is None:
        return original, None
    if original.normalised.batch_free:
        count = max(recipe.samples, original.least)
        samples = open_samples(data, original.inputs, original.preprocess, count, recipe.seed)
    notes += notes_on_samples(samples)
    return original, samples


@stage("synthesise")
def make_samples(
    job: Job,
    original: Original,
    generator: ir.Model | None,
    folder: Path,
    checkpoint: Checkpoint | None,
    clock: Clock,
    share: float = SYNTHESIS_SHARE,
) -> tuple[Samples, Synthesis]:
    """Synthetic images, generated in at most this share of the time."""
    task = recipe_task(job.recipe, original.least, clock.left(share))
    (place := folder / "made").mkdir()
    model, preprocess = original.normalised.unfolded, original.preprocess
    return synthesise(
        model, preprocess, task, place, job.progress, checkpoint, job.resume, generator
    )


def split(original: Original, samples: Samples, recipe: Recipe) -> tuple[Samples, Samples]:
    """The training slice and the held-out samples, in batches that the original takes."""
    samples = samples.in_batches_of(original.batch)
    return split_samples(samples, original.least, recipe.seed, searched=recipe.searches)


@stage("original's outputs")
def run_original(
    job: Job,
    original: Original,
    slices: tuple[Samples, Samples],
    folder: Path,
    whose: str = "original's",
) -> Targets:
    """The original's outputs on the training slice and on the held-out samples."""
    logits = find_logits(original.model)
    task = job.recipe.task
    return find_targets(original.model, logits, slices, folder, whose, job.progress, task)


@stage("export")
def _export(job: Job, original: Original, variant: Variant) -> ir.Model:
    """The deployable model; a model that is no smaller is refused, unless the job allows it."""
    model = export(variant.student, variant.qparams, original.interface)
    if not job.allow_worse:
        check_smaller(model, job.model, variant.recipe, original.preprocess)
    return model


@stage("verify")
def _verify(
    job: Job, original: Original, variant: Variant, model: ir.Model, samples: Samples, size: int
) -> Measurements:
    """The measurements of the deployable model, which then gets the original's float types."""
    student = partial(bake, variant.student, variant.qparams)
    plan, task = variant.student.plan, variant.recipe.task
    exported = Exported(job.model, original.model, student, model, plan, task)
    samples = samples.in_batches_of(original.normalised.original_batch)
    measured = verify(exported, samples, size, job.progress)
    restore_types(model, original.interface)
    return measured


def sensitivity(
    model: str | Path,
    data: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    generator: str | Path | None = None,
) -> SweepTable:
    """The effect of each setting of each layer alone on the outputs; nothing is written.

    Args:
        model: the ONNX file.
        data: unlabelled samples, of which the held-out ones are used; None where data-free.
        recipe: the options; codebooks, the goal of a search and options of training are ignored.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        progress: told how far each stage is.
        generator: for a data-free recipe, the file of a saved generator of samples.

    Raises:
        OnnxqError: a user error.
    """
    recipe = (recipe or Recipe()).for_sweep()
    check_data(recipe, data)
    check_generator_files(recipe, generator, None)
    job = make_job(model, data, recipe, progress, preprocess, generator)
    saved = None if job.generator is None else load_model(job.generator)
    original, samples = read(job, notes := list[str]())
    plan = make_plan(original.model, recipe)
    # The effect on the outputs does not depend on the size.
    check_plan(plan, original.model, job.model, recipe, allow_worse=True)
    with run_folder(None, False) as folder:
        synthesis = None
        if samples is None:
            clock = Clock(recipe.max_minutes)
            samples, synthesis = make_samples(job, original, saved, folder, None, clock, share=1.0)
            notes += synthesis.notes
        size = _batch_size(original, recipe)
        train, held_out = split(original, samples, recipe)
        targets = run_original(job, original, (train, held_out), folder)
        quantize = Quantization(train, targets, size, progress=job.progress)
        variant = choose_ranges(choose_form(original.model, recipe, quantize))
        variant = fall_back(variant, quantize, job.progress)
        synthetic = synthesis is not None
        table = sweep_variant(variant, held_out, size, job.progress, synthetic=synthetic)
    return replace(table, notes=tuple(notes))
