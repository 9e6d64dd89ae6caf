"""The main job, stage by stage.

load -> normalise -> plan -> calibrate -> rewrite -> learn -> export -> verify -> report

Where there are no data, samples are made between normalise and plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.errors import OutputError
from onnxq.export.save import check_file, check_output, locked, save_model
from onnxq.intake import Intake
from onnxq.load.model import load_model
from onnxq.load.version import least_opset
from onnxq.normalise.pipeline import normalise
from onnxq.options.contradictions import check_data, check_generator_files
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.plan.float_layers import check_float_layers
from onnxq.progress import Progress, Silent
from onnxq.run import Run
from onnxq.search.table import SweepTable
from onnxq.synthesise.images import Synthesis
from onnxq.train.checkpoint import run_folder
from onnxq.verify.metrics import Metrics


@dataclass
class Result:
    """What `compress` made.

    Attributes:
        model: the deployable model.
        path: the file, or None where none was asked for.
        metrics: the differences to the original, sizes and latencies.
        recipe: the options that were used.
        plan: what was done to each layer and tensor.
        notes: sentences for the user.
        synthesis: how samples were made, where there were none.
        unsaved: why the generator was not written that was to be kept; None where it was.
    """

    model: ir.Model
    path: Path | None
    metrics: Metrics
    recipe: Recipe
    plan: Plan
    notes: list[str] = field(default_factory=list)
    synthesis: Synthesis | None = None
    unsaved: OutputError | None = None


@dataclass
class PlanReport:
    """What `compress` would do: the normalised model, its plan and notes."""

    model: ir.Model
    plan: Plan
    notes: list[str]


def plan_model(
    model: str | Path, recipe: Recipe | None = None, *, allow_worse: bool = False
) -> PlanReport:
    """Load, normalise and plan a model; nothing is learned and nothing written."""
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
    """Quantize a float ONNX model with unlabelled samples, or with samples made from it alone.

    Args:
        model: the ONNX file.
        data: the samples: a folder or a file; None where the recipe is data-free.
        recipe: the options; None means the defaults.
        out: the file to write; None writes none.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        force: overwrite `out`.
        resume: go on from the checkpoint of a stopped run.
        progress: told where the work stands.
        generator: of a data-free recipe: the file of a saved generator, which makes the samples.
        save_generator: the file to write the generator to that was trained.
        allow_worse: quantize layers that are no smaller as integers too, and write a result that
            is no smaller than the original, or broken.

    Raises:
        WorseError: the result is no smaller than the original, or held-out samples show that it
            is broken; a broken one is written where the recipe names the method.
        OnnxqError: something else that the user can mend, in one sentence.
    """
    model_path, recipe = Path(model), recipe or Recipe()
    check_data(recipe, data)
    data_path, out_path = (None if path is None else Path(path) for path in (data, out))
    _check_files(recipe, model_path, out_path, generator, save_generator, force)
    intake = Intake(model_path, recipe, progress or Silent(), allow_worse=allow_worse)
    intake.load(data_path, preprocess, generator)
    checkpoint = intake.checkpoint(out_path, data_path)
    with locked(out_path), run_folder(checkpoint, resume) as folder:
        if data_path is None:
            intake.synthesise(folder, checkpoint, resume, save_generator)
        run = Run(intake)
        variant = run.prepare(folder)
        run.check_size(variant)
        variant = run.search(variant, checkpoint, resume)
        learned = run.learn(variant, checkpoint, resume)
        final = run.finish(variant, learned)
        exported = run.export(final)
        metrics = run.verify(final, learned, exported)
        if out_path is not None:
            save_model(exported, out_path)
    plan = final.student.plan
    return Result(
        exported, out_path, metrics, run.recipe, plan, run.notes, intake.synthesis, intake.unsaved
    )


def sensitivity(
    model: str | Path,
    data: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    preprocess: Preprocess | None = None,
    progress: Progress | None = None,
    generator: str | Path | None = None,
) -> SweepTable:
    """What each setting of each layer alone does to the outputs; nothing is written.

    Args:
        model: the ONNX file.
        data: unlabelled samples; settings are tried on those that a search holds out. None where
            the recipe is data-free, whose `max_minutes` are for making them.
        recipe: the options; codebooks, the goal of a search and what is learned have no part in it.
        preprocess: how an image becomes an input; None looks beside and inside the model.
        progress: told where the work stands.
        generator: of a data-free recipe: the file of a saved generator, which makes the samples.

    Raises:
        OnnxqError: something that the user can mend, in one sentence.
    """
    recipe = (recipe or Recipe()).for_sweep()
    check_data(recipe, data)
    check_generator_files(recipe, generator, None)
    # What a setting does to the outputs has nothing to do with the size.
    intake = Intake(Path(model), recipe, progress or Silent(), allow_worse=True)
    intake.load(None if data is None else Path(data), preprocess, generator)
    with run_folder(None, False) as folder:
        if data is None:
            intake.synthesise(folder, None, False, share=1.0)
        run = Run(intake)
        table = run.sweep(run.prepare(folder))
    return replace(table, notes=tuple(run.notes))


def _check_files(
    recipe: Recipe,
    model: Path,
    out: Path | None,
    generator: str | Path | None,
    save_generator: str | Path | None,
    force: bool,
) -> None:
    """Find out before the long work whether the files can be written."""
    if out is not None:
        check_output(out, model, force)
    check_generator_files(recipe, generator, save_generator)
    if save_generator is not None:
        check_file(Path(save_generator), model, force, "generator", "--save-generator")
