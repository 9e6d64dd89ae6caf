"""The distillation pipeline: another architecture is trained to give a model's outputs.

load -> normalise -> learn -> write, for a teacher and a student

Where there are no data, synthetic images are generated from the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxq.data.arrays import fixed_batch
from onnxq.data.preprocess import Preprocess
from onnxq.distillation.network import FloatNetwork
from onnxq.distillation.result import DistillMetrics, DistillResult, make_metrics, write_metadata
from onnxq.distillation.stage import (
    FILE,
    Pairing,
    Subject,
    check_gradients,
    find_fault,
    names_budget,
    of_batch,
    pair_inputs,
    pair_models,
)
from onnxq.distillation.training import make_budget
from onnxq.errors import WorseError
from onnxq.export.compact import store_halves
from onnxq.export.interface import restore_interface, restore_types
from onnxq.export.save import check_files, locked, save_model, try_to_save
from onnxq.learn.train import NO_CLASSIFIER
from onnxq.load.interface import Interface
from onnxq.load.model import load_model, load_original
from onnxq.load.read import file_bytes
from onnxq.load.version import least_opset
from onnxq.normalise.free_batch import fix_batch
from onnxq.normalise.pipeline import Original, normalise
from onnxq.options.contradictions import check_data, check_distillation, check_generator_files
from onnxq.options.recipe import Recipe
from onnxq.pipeline import make_samples, read, run_original, split
from onnxq.progress import Progress
from onnxq.runtime.clock import Clock
from onnxq.train.augment import recipe_augmentation
from onnxq.train.checkpoint import Job, file_digest, make_job, run_folder
from onnxq.train.objective import choose_objective

NO_GAIN = "training did not beat the student as it was on the held-out samples, which is kept"


def distill(
    teacher: str | Path,
    student: str | Path,
    data: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    init: str = FILE,
    out: str | Path | None = None,
    preprocess: Preprocess | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    generator: str | Path | None = None,
    save_generator: str | Path | None = None,
    allow_worse: bool = False,
) -> DistillResult:
    """Train the float weights of a student to give a teacher's outputs, without labels.

    Args:
        teacher: its ONNX file.
        student: the ONNX file of another model with the same input and output shapes.
        data: the samples: a folder or a file; None where the recipe is data-free.
        recipe: the options; those of quantization have to be at their defaults. None means the
            defaults.
        init: 'file' starts from the student's own weights, 'random' from random ones.
        out: the file to write; None writes none.
        preprocess: how an image becomes an input; None looks beside and inside the teacher.
        force: whether `out` may be overwritten.
        resume: whether to resume from the checkpoint of a stopped run.
        progress: told how far each stage is.
        generator: for a data-free recipe, the file of a saved generator, which generates the
            samples.
        save_generator: the file to write the trained generator to.
        allow_worse: whether a broken student is written.

    Raises:
        WorseError: held-out samples show that the student is broken; it is written where the recipe
            says how it is trained.
        OnnxqError: any other user error.
    """
    recipe = recipe or Recipe()
    check_data(recipe, data)
    check_distillation(recipe, init)
    check_generator_files(recipe, generator, save_generator)
    job = make_job(
        teacher, data, recipe, progress, preprocess, generator, save_generator, out,
        resume=resume, allow_worse=allow_worse,
    )  # fmt: skip
    for path in (job.model, Path(student)):
        check_files(path, force, output=job.out, generator=job.save_generator)
    return _distill(job, Path(student), init)


def _distill(job: Job, path: Path, init: str) -> DistillResult:
    """The pipeline, from the files of teacher and student to the written one."""
    recipe, progress, notes = job.recipe, job.progress, list[str]()
    generator = None if job.generator is None else load_model(job.generator)
    teacher, samples = read(job, notes)
    student, teacher = read_student(path, recipe, teacher)
    checkpoint = job.checkpoint(samples, student=file_digest(path), init=init)
    clock = Clock(recipe.max_minutes)
    with locked(job.out), run_folder(checkpoint, job.resume) as folder:
        synthesis, unsaved = None, None
        if samples is None:
            samples, synthesis = make_samples(job, teacher, generator, folder, checkpoint, clock)
            unsaved = try_to_save(synthesis.generator, job.save_generator)
            notes += synthesis.notes
        slices = split(teacher, samples, recipe)
        targets = run_original(job, teacher, slices, folder, "teacher's")
        budget = make_budget(recipe, student.network.model, targets.train, clock.left())
        objective = choose_objective(targets.objective, distil=budget.distils())
        if recipe.loss == "distillation" and targets.objective.decision is None:
            notes.append(NO_CLASSIFIER)
        images, synthetic = (teacher.inputs, teacher.preprocess), synthesis is not None
        changes = recipe_augmentation(recipe, *images, targets.teacher, synthetic=synthetic)
        subject = Subject(student.network, student.pairing, targets, objective)
        found = subject.distil(init, budget, progress, checkpoint, job.resume, changes)
        if not found.improved:
            notes.append(NO_GAIN)
        model = student.network.with_values(found.values)
        scored = subject.evaluate(model)
        restore_interface(model, student.interface)
        store_halves(model)
        restore_types(model, student.interface)
        metrics = make_metrics(
            found,
            scored,
            (file_bytes(job.model), 0),
            sum(found.values[name].size for name in student.network.parameters),
            (samples.count, slices[1].count),
            job.engine,
        )
        notes += _faults(job, metrics)
        metrics = write_metadata(model, metrics, recipe, init, teacher.preprocess)
        if job.out is not None:
            save_model(model, job.out)
    return DistillResult(model, job.out, metrics, recipe, init, notes, synthesis, unsaved)


@dataclass(frozen=True)
class FloatStudent:
    """A student, and the correspondence of its inputs and outputs to the teacher's.

    Attributes:
        interface: inputs and outputs of its file.
        network: its graph.
        pairing: its names and the teacher's.
    """

    interface: Interface
    network: FloatNetwork
    pairing: Pairing


def read_student(path: Path, recipe: Recipe, teacher: Original) -> tuple[FloatStudent, Original]:
    """The student, loaded and normalised, and the teacher with a batch size that both take.

    Args:
        path: its file.
        recipe: the options.
        teacher: its teacher.

    Raises:
        ModelError: their inputs or outputs don't correspond, or the student can't be trained.
    """
    loaded = load_original(path, least_opset(recipe.target), None)
    specs, feeds = loaded.inputs, teacher.feeds
    inputs = pair_inputs(teacher.inputs, specs, batch=False)
    own_feeds = of_batch(Pairing(inputs, {}).student_feeds(feeds), fixed_batch(specs))
    normalised = normalise(loaded.model, [own_feeds])
    unfolded = normalised.unfolded
    if not normalised.batch_free:
        size = normalised.original_batch or 1
        teacher = teacher.in_batches_of(size)
        fix_batch(unfolded, size)
    feeds = of_batch(feeds, fixed_batch(teacher.inputs))
    pairing = pair_models(teacher.model, unfolded, feeds)
    network = FloatNetwork(unfolded)
    check_gradients(network, pairing, feeds)
    return FloatStudent(loaded.interface, network, pairing), teacher


def _faults(job: Job, metrics: DistillMetrics) -> list[str]:
    """A note that says why the student is broken; raises where such a student is refused."""
    if (fault := find_fault(metrics)) is None:
        return []
    if not job.allow_worse and not names_budget(job.recipe):
        raise WorseError(
            f"the student is broken: {fault}; nothing was written: more --epochs or samples "
            "help, and --allow-worse --resume writes it all the same"
        )
    return [f"the student is broken: {fault}"]
