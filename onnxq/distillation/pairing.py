"""The correspondence of a student's inputs and outputs to its teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.data.arrays import InputSpec
from onnxq.errors import ModelError
from onnxq.load.interface import input_specs
from onnxq.runtime.session import Arrays, Feeds, expose, open_session
from onnxq.train.objective import find_logits


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
