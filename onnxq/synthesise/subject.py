"""The network that images are made for, and which losses it can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.preprocess import Preprocess
from onnxq.errors import ModelError, RecipeError
from onnxq.learn.engine import ungradable_nodes
from onnxq.learn.logits import find_logits
from onnxq.learn.sizes import fix_sizes
from onnxq.load.inputs import input_specs
from onnxq.numerics.distributions import holds_decisions, look_like_probabilities
from onnxq.session import expose, open_session
from onnxq.synthesise.batch_norms import FOLDED, BatchNorm, find_batch_norms
from onnxq.synthesise.float_student import find_float_student
from onnxq.synthesise.objective import LOSS, Student, SynthesisObjective
from onnxq.synthesise.space import ImageSpace, image_space

PROBE = 2
"""Samples of noise on which it is seen whether a model is a classifier."""


@dataclass(frozen=True)
class Subject:
    """A float network whose training data are not there.

    Attributes:
        model: the network, unfolded, its input of known size.
        space: of its input.
        batch_norms: whose statistics images can match.
        logits: the tensor of a classifier's logits; None for other models.
        classes: how many it tells apart; 0 for other models.
        notes: sentences for the user.
    """

    model: ir.Model
    space: ImageSpace
    batch_norms: list[BatchNorm]
    logits: str | None
    classes: int
    notes: list[str]

    def objective(
        self, weights: Mapping[str, float], student: Student | None = None
    ) -> SynthesisObjective:
        """The losses that this network can have.

        Args:
            weights: by kind.
            student: of the adversarial loss; None means one of the network's architecture.

        Raises:
            ModelError: no gradient leads from them to the images.
            RecipeError: all of them are switched off.
        """
        if student is None and weights.get("adversarial") and self.logits is not None:
            student = find_float_student(self.model, self.space.name, self.logits)
        found = SynthesisObjective(weights, self.batch_norms, self.logits, student)
        if not found.kinds:
            raise RecipeError(
                "The option 'synthesis_losses' switches off all that could make images of the "
                "network's own data; leave 'inception' or 'bn' above 0."
            )
        attached = found.attach(self.model)
        if refused := ungradable_nodes(attached, [self.space.name], [LOSS]):
            name, op_type, reason = refused[0]
            raise ModelError(
                f"--data-free needs gradients from the outputs to the images, and none passes the "
                f"node '{name}' ({op_type}): {reason}; give samples with --data."
            )
        return found


def find_subject(model: ir.Model, preprocess: Preprocess | None) -> Subject:
    """What there is to go by in a network.

    Args:
        model: normalised, BatchNormalization not folded.
        preprocess: how images become its input.

    Raises:
        ModelError: its input can't be made, or there is nothing to go by.
    """
    space = image_space(input_specs(model), preprocess)
    noise = space.noise(np.random.default_rng(0), space.batch or PROBE)
    model = fix_sizes(model, {space.name: noise})
    norms = find_batch_norms(model)
    logits, classes = _find_classifier(model, space.name, noise)
    if not norms and logits is None:
        raise ModelError(
            "--data-free has nothing to go by, since the model is no classifier (one output of "
            f"logits) and {FOLDED}; else give samples with --data."
        )
    notes = [] if norms else [FOLDED]
    if preprocess is None:
        notes.append(
            "nothing says how an image becomes the model's input, so that made samples have no "
            "range: give --mean and --std where it takes images"
        )
    return Subject(model, space, norms, logits, classes, notes)


def _find_classifier(model: ir.Model, name: str, noise: np.ndarray) -> tuple[str | None, int]:
    """The tensor of the logits and their number, as it is told from outputs on noise."""
    names = find_logits(model)
    if len(names) != 1:
        return None, 0
    (rows,) = open_session(expose(model, names)).run(None, {name: noise})
    decides = holds_decisions(rows.shape, len(noise))
    if not decides or look_like_probabilities(rows.reshape(len(noise), -1)):
        return None, 0
    return names[0], rows.shape[1]
