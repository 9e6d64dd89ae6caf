"""Distillation, stage by stage: another architecture learns a model's outputs.

load -> normalise -> learn -> write, for a teacher and a student

Where there are no data, samples are made from the teacher alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onnxq.data.inputs import fixed_batch
from onnxq.data.preprocess import Preprocess
from onnxq.distillation.network import FloatNetwork
from onnxq.distillation.pairing import Pairing, of_batch, pair_inputs, pair_models
from onnxq.distillation.result import (
    METADATA_KEY,
    DistillMetrics,
    DistillResult,
    make_metrics,
    metadata_text,
)
from onnxq.distillation.stage import FILE, Subject, check_gradients
from onnxq.distillation.training import Distilled, make_budget
from onnxq.distillation.verdict import find_fault, names_budget
from onnxq.errors import WorseError
from onnxq.export.compact import store_halves
from onnxq.export.interface import restore_interface, restore_types
from onnxq.export.metadata import describe, preprocess_metadata
from onnxq.export.save import check_file, check_output, locked, save_model
from onnxq.intake import Intake, file_digest
from onnxq.learn.train import NO_CLASSIFIER
from onnxq.load.interface import input_specs, interface_of
from onnxq.load.model import load_model
from onnxq.load.read import file_bytes
from onnxq.load.version import least_opset
from onnxq.normalise.free_batch import fix_batch
from onnxq.normalise.pipeline import normalise
from onnxq.options.contradictions import check_data, check_distillation, check_generator_files
from onnxq.options.recipe import Recipe
from onnxq.progress import Progress, Silent
from onnxq.train.checkpoint import Checkpoint, run_folder
from onnxq.train.logits import find_logits
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
        student: the ONNX file of another network that takes and gives the same shapes.
        data: the samples: a folder or a file; None where the recipe is data-free.
        recipe: the options, those that quantize left at their defaults; None means the defaults.
        init: 'file' starts from the student's own weights, 'random' draws others.
        out: the file to write; None writes none.
        preprocess: how an image becomes an input; None looks beside and inside the teacher.
        force: overwrite `out`.
        resume: go on from the checkpoint of a stopped run.
        progress: told where the work stands.
        generator: of a data-free recipe: the file of a saved generator, which makes the samples.
        save_generator: the file to write the generator to that was trained.
        allow_worse: write a student that is broken.

    Raises:
        WorseError: held-out samples show that the student is broken; it is written where the
            recipe says how it is trained.
        OnnxqError: something else that the user can mend, in one sentence.
    """
    paths, recipe = (Path(teacher), Path(student)), recipe or Recipe()
    check_data(recipe, data)
    check_distillation(recipe, init)
    data_path, out_path = (None if path is None else Path(path) for path in (data, out))
    check_generator_files(recipe, generator, save_generator)
    for path in paths:
        if out_path is not None:
            check_output(out_path, path, force)
        if save_generator is not None:
            check_file(Path(save_generator), path, force, "generator", "--save-generator")
    run = DistillRun(*paths, recipe, init, progress or Silent(), allow_worse=allow_worse)
    run.load(data_path, preprocess, generator)
    more = {"student": file_digest(run.student), "init": init}
    checkpoint = run.intake.checkpoint(out_path, data_path, **more)
    with locked(out_path), run_folder(checkpoint, resume) as folder:
        if data_path is None:
            run.intake.synthesise(folder, checkpoint, resume, save_generator)
        result = run.finish(run.train(folder, checkpoint, resume))
        if out_path is not None:
            save_model(result.model, out_path)
            result.path = out_path
    return result


class DistillRun:
    """The state of one run between its stages.

    Args:
        teacher: its file.
        student: its file.
        recipe: the options.
        init: where the student's first weights come from.
        progress: told where the work stands.
        allow_worse: whether a student is wanted that is broken.
    """

    def __init__(
        self,
        teacher: Path,
        student: Path,
        recipe: Recipe,
        init: str,
        progress: Progress,
        *,
        allow_worse: bool = False,
    ) -> None:
        self.student, self._recipe, self._init = student, recipe, init
        self._progress = progress
        self.intake = Intake(teacher, recipe, progress, quantizes=False, allow_worse=allow_worse)

    def load(
        self, data: Path | None, preprocess: Preprocess | None, generator: str | Path | None
    ) -> None:
        """Read teacher, samples or a saved generator, and student; see that they go together."""
        self.intake.load(data, preprocess, generator)
        teacher, feeds = self.intake.normalised.model, self.intake.check_feeds
        original = load_model(self.student, least_opset(self._recipe.target))
        self._interface = interface_of(original)
        specs = input_specs(original)
        inputs = pair_inputs(input_specs(teacher), specs, batch=False)
        own_feeds = of_batch(Pairing(inputs, {}).student_feeds(feeds), fixed_batch(specs))
        normalised = normalise(original, [own_feeds])
        unfolded = normalised.unfolded
        if not normalised.batch_free:
            size = normalised.original_batch or 1
            self.intake.insist_on_batch(size)
            fix_batch(unfolded, size)
        feeds = of_batch(feeds, fixed_batch(input_specs(teacher)))
        self._pairing = pair_models(teacher, unfolded, feeds)
        self._network = FloatNetwork(unfolded)
        check_gradients(self._network, self._pairing, feeds)

    def train(self, folder: Path, checkpoint: Checkpoint | None, resume: bool) -> Distilled:
        """The teacher's outputs, then the student trained on them."""
        intake, recipe = self.intake, self._recipe
        logits = find_logits(intake.normalised.model)
        targets = intake.targets(folder, logits, "teacher's")
        budget = make_budget(recipe, self._network.model, targets.train, intake.seconds)
        objective = choose_objective(targets.objective, distil=budget.distils())
        network, pairing = self._network, self._pairing
        self._subject = Subject(network, pairing, targets, objective)
        if recipe.loss == "distillation" and targets.objective.decision is None:
            intake.notes.append(NO_CLASSIFIER)
        changes = intake.augmentation(targets.teacher, weights=True)
        found = self._subject.distil(
            self._init, budget, self._progress, checkpoint, resume, changes
        )
        if not found.improved:
            intake.notes.append(NO_GAIN)
        return found

    def finish(self, found: Distilled) -> DistillResult:
        """The student as it is written, and its metrics."""
        intake, network = self.intake, self._network
        model = network.with_values(found.values)
        scored = self._subject.judge(model)
        restore_interface(model, self._interface)
        store_halves(model)
        restore_types(model, self._interface)
        metrics = make_metrics(
            found,
            scored,
            (file_bytes(intake.path), 0),
            sum(found.values[name].size for name in network.parameters),
            (intake.samples.count, intake.held_out.count),
        )
        self._judge(metrics)
        entries = preprocess_metadata(intake.preprocess)

        def of_size(size: int) -> dict[str, str]:
            sized = replace(metrics, student_bytes=size)
            return {**entries, METADATA_KEY: metadata_text(sized, self._recipe, self._init)}

        metrics = replace(metrics, student_bytes=describe(model, of_size))
        return DistillResult(
            model, None, metrics, self._recipe, self._init, intake.notes, intake.synthesis,
            intake.unsaved,
        )  # fmt: skip

    def _judge(self, metrics: DistillMetrics) -> None:
        """Note that the student is broken, or refuse it."""
        if (fault := find_fault(metrics)) is None:
            return
        if not self.intake.allow_worse and not names_budget(self._recipe):
            raise WorseError(
                f"the student is broken: {fault}; nothing was written: more --epochs or samples "
                "help, and --allow-worse --resume writes it all the same"
            )
        self.intake.notes.append(f"the student is broken: {fault}")
