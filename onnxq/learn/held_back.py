"""The label-free judge: the student's loss on the held-back slice of the samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxq.learn.loss import LOSS, relative_rmse
from onnxq.learn.teacher import MICRO_BATCH, Targeted
from onnxq.session import SessionPool


class HeldBack:
    """Scores the numbers of a student against the teacher on samples nothing is learned on.

    Args:
        student: the student with its loss attached.
        outputs: the teacher's outputs on the held-back samples.
    """

    def __init__(self, student: ir.Model, outputs: Targeted) -> None:
        self._student, self._outputs = student, outputs
        self._pool: SessionPool | None = None

    def release(self) -> None:
        """Give back the memory of the session, which the next score opens again."""
        self._pool = None

    def score(
        self,
        parameters: Mapping[str, np.ndarray],
        positions: np.ndarray | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> float:
        """The relative RMSE of the logits, on some positions or on all; lower is better."""
        if positions is None:
            positions = np.arange(self._outputs.positions)
        batches = self._outputs.batches(positions, batch_size)
        if self._pool is None:
            self._pool = SessionPool(self._student, [LOSS])
        results = self._pool.map({**parameters, **feeds} for feeds in batches)
        return relative_rmse(sum(float(r[LOSS]) for r in results), len(positions))
