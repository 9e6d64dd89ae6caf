"""Train a student on its teacher's outputs, and judge the model that is written."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxq.distillation.network import BatchStatistics, FloatNetwork, rename
from onnxq.distillation.pairing import Pairing
from onnxq.distillation.parameters import draw
from onnxq.distillation.result import DistillMetrics
from onnxq.distillation.training import Distilled, FloatTraining
from onnxq.engine import Engine, ungradable_nodes
from onnxq.errors import ModelError
from onnxq.options.recipe import Recipe
from onnxq.options.table import INITS
from onnxq.progress import Progress
from onnxq.runtime.session import Feeds, expose
from onnxq.train.augment import Augmentation
from onnxq.train.budget import Budget, fix_sizes, sized_for
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import HeldOut, Score
from onnxq.train.objective import LOSS, Objective
from onnxq.train.teacher import Targets
from onnxq.verify.verdict import BROKEN_AGREEMENT

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
