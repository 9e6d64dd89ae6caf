"""Train a student on the outputs of the teacher that it is paired with.

And judge what is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.distillation.network import BatchStatistics, FloatNetwork, draw, rename
from onnxq.distillation.result import DistillMetrics
from onnxq.distillation.training import Distilled, FloatTraining
from onnxq.engine import Engine, ungradable_nodes
from onnxq.errors import ModelError
from onnxq.load.interface import input_specs
from onnxq.options.recipe import Recipe
from onnxq.options.table import INITS
from onnxq.progress import Progress
from onnxq.runtime.session import Arrays, Feeds, expose, open_session
from onnxq.train.augment import Augmentation
from onnxq.train.budget import Budget, fix_sizes, sized_for
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Score
from onnxq.train.objective import LOSS, Objective, find_logits
from onnxq.train.teacher import Targets
from onnxq.verify.verdict import BROKEN_AGREEMENT


@dataclass(frozen=True)
class Pairing:
    """The teacher's name of each input and compared tensor, by the student's name.

    Attributes:
        inputs: of the graph.
        logits: the compared tensors.
    """

    inputs: Mapping[str, str]
    logits: Mapping[str, str]

    @property
    def names(self) -> dict[str, str]:
        """Inputs and compared tensors together."""
        return {**self.inputs, **self.logits}

    def student_feeds(self, feeds: Feeds) -> Arrays:
        """The student's feeds from the teacher's."""
        return {mine: feeds[theirs] for mine, theirs in self.inputs.items()}


def pair_inputs(
    teacher: Sequence[InputSpec], student: Sequence[InputSpec], *, batch: bool = True
) -> dict[str, str]:
    """The teacher's input by the student's: a lone input by position, several by name.

    Args:
        teacher: its inputs.
        student: its inputs.
        batch: whether a fixed batch has to be the same; False where it may still be freed.

    Raises:
        ModelError: the inputs don't correspond.
    """
    alone = len(teacher) == len(student) == 1
    theirs = {spec.name: spec for spec in teacher}
    pairs = {spec.name: teacher[0].name if alone else spec.name for spec in student}
    listed = [", ".join(f"'{spec.name}' {spec}" for spec in specs) for specs in (teacher, student)]
    if set(pairs.values()) != set(theirs):
        raise ModelError(
            f"The student takes {listed[1]} and the teacher {listed[0]}; several inputs go "
            "together by their names: export the student with the teacher's."
        )
    for spec in student:
        if not _fit(theirs[pairs[spec.name]], spec, batch):
            raise ModelError(
                f"The student takes {listed[1]} and the teacher {listed[0]}; export a student that "
                "takes the same shapes."
            )
    return pairs


def _fit(theirs: InputSpec, mine: InputSpec, batch: bool) -> bool:
    """Whether the two inputs accept the same arrays."""
    if theirs.dtype != mine.dtype or len(theirs.shape) != len(mine.shape):
        return False
    fixed = mine.shape[0] if mine.shape and batch else None
    if fixed is not None and fixed != theirs.shape[0]:
        return False
    sizes = zip(theirs.shape[1:], mine.shape[1:], strict=True)
    return all(a is None or b is None or a == b for a, b in sizes)


def pair_models(teacher: ir.Model, student: ir.Model, feeds: Feeds) -> Pairing:
    """The correspondence of two models.

    Args:
        teacher: normalised.
        student: normalised.
        feeds: some samples for the teacher, on which both are run.

    Raises:
        ModelError: their inputs or their outputs don't correspond.
    """
    inputs = pair_inputs(input_specs(teacher), input_specs(student))
    theirs, mine = find_logits(teacher), find_logits(student)
    if len(theirs) != len(mine) or not mine:
        raise ModelError(
            f"The student has {len(mine)} float outputs and the teacher {len(theirs)}; export a "
            "student with the teacher's outputs."
        )
    own_feeds = Pairing(inputs, {}).student_feeds(feeds)
    for name, other in zip(mine, theirs, strict=True):
        found, wanted = _shape(student, name, own_feeds), _shape(teacher, other, feeds)
        if found != wanted:
            raise ModelError(
                f"The student's '{name}' is of shape {found} where the teacher's '{other}' is of "
                f"shape {wanted}; export a student whose outputs have the teacher's shapes."
            )
    return Pairing(inputs, dict(zip(mine, theirs, strict=True)))


def of_batch(feeds: Feeds, size: int | None) -> Arrays:
    """Feeds of the batch size that a model requires: samples are repeated, or left out."""
    if size is None:
        return dict(feeds)
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in feeds.items()}


def _shape(model: ir.Model, name: str, feeds: Feeds) -> tuple[int, ...]:
    return tuple(open_session(expose(model, [name])).run([name], dict(feeds))[0].shape)


FILE, RANDOM = INITS


@dataclass(frozen=True)
class Subject:
    """A student and its teacher's outputs.

    Attributes:
        network: the student.
        pairing: correspondence to the teacher's names.
        targets: the samples, joined with the teacher's outputs.
        objective: the loss.
    """

    network: FloatNetwork
    pairing: Pairing
    targets: Targets
    objective: Objective

    def distil(
        self,
        init: str,
        budget: Budget,
        progress: Progress,
        checkpoint: Checkpoint | None,
        resume: bool,
        augmentation: Augmentation | None,
    ) -> Distilled:
        """Train the student; the epoch that is best on the held-out samples is kept.

        Args:
            init: 'file' starts from the file's weights, 'random' from random ones.
            budget: how long and how fast.
            progress: told how far it is.
            checkpoint: None keeps none.
            resume: whether to resume from the checkpoint.
            augmentation: how the training samples change in each epoch; None leaves them unchanged.
        """
        network, names = self.network, self.pairing.names
        training = sized_for(network.training(names), self.targets.train.parts[0])
        scored = self._held_out(network.inference(names))
        anew = init == RANDOM
        start = draw(network.parameters, budget.seed) if anew else network.start()
        run = FloatTraining(
            Engine(self.objective.attach(training), list(start), LOSS, kernels=budget.engine),
            self.targets.train,
            scored,
            BatchStatistics(training, network.moments, self.targets.train, budget.shard_size),
            self.objective,
            start,
            None if anew else network.statistics(),
            budget,
            checkpoint,
            augmentation,
        )
        return run.run(progress, resume)

    def evaluate(self, model: ir.Model) -> Score:
        """Evaluate a student, as it is written, on the held-out samples."""
        copy = model.clone(deep_copy=False)
        rename(copy.graph, self.pairing.names)
        return self._held_out(copy).evaluate({})

    def _held_out(self, model: ir.Model) -> HeldOut:
        return HeldOut(self.objective.attach(model), self.targets.held_out, self.objective)


def check_gradients(network: FloatNetwork, pairing: Pairing, feeds: Feeds) -> None:
    """Check before the long work whether the student can be trained.

    Raises:
        ModelError: a node between weights and outputs has no gradient.
    """
    graph = expose(network.training({}), list(pairing.logits))
    sized = fix_sizes(graph, pairing.student_feeds(feeds))
    refused = ungradable_nodes(sized, list(network.parameters))
    if refused:
        name, op_type, reason = refused[0]
        raise ModelError(
            f"No gradient passes the student's node '{name}' ({op_type}): {reason}; give a student "
            "without it, exported for inference."
        )


BROKEN_ERROR = 0.7
"""Error, relative to the teacher's outputs, above which a student without decisions is broken: an
SQNR of 3 dB."""

BUDGET = ("epochs", "max_minutes", "lr")
"""Options that say how the student is trained: whoever sets one gets what it gives."""


def find_fault(metrics: DistillMetrics) -> str | None:
    """Why a student is broken, as a clause; None where it isn't.

    A classifier is evaluated by its decisions, any other student by the error of its outputs.
    """
    held_out = f"{metrics.held_back} held-out samples"
    if metrics.agreement is not None:
        if metrics.agreement >= BROKEN_AGREEMENT:
            return None
        return (
            f"it decides as the teacher on {metrics.agreement:.1%} of {held_out}, under "
            f"{BROKEN_AGREEMENT:.0%}"
        )
    if metrics.score is None:
        return f"its outputs on {held_out} are not finite"
    if metrics.score <= BROKEN_ERROR:
        return None
    return (
        f"the error of its outputs on {held_out} is {metrics.score:.0%} of the teacher's, over "
        f"{BROKEN_ERROR:.0%}"
    )


def names_budget(recipe: Recipe) -> bool:
    """Whether the recipe states how long or how the student is trained."""
    default = Recipe()
    return any(getattr(recipe, name) != getattr(default, name) for name in BUDGET)
