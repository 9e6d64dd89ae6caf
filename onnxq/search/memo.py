"""What a search has measured so far, kept so that a stopped run need not measure it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxq.learn.checkpoint import Checkpoint
from onnxq.search.table import Effect, Setting, SweepTable

PART = "search"
"""The name of the state in the checkpoint's folder."""

_SWEEP, _TRIALS = "sweep", "trials"


class Memo:
    """The table and the trials of one search; equal questions get the answer that was kept.

    Args:
        checkpoint: of the run; None keeps nothing.
        resume: whether what an earlier run kept is used.
    """

    def __init__(self, checkpoint: Checkpoint | None, *, resume: bool) -> None:
        self._checkpoint = checkpoint.part(PART) if checkpoint is not None else None
        arrays = self._checkpoint.load() if self._checkpoint is not None and resume else None
        self._kept: dict[str, Any] = {
            name: json.loads(str(array)) for name, array in (arrays or {}).items()
        }

    def sweep(self, measure: Callable[[], SweepTable]) -> SweepTable:
        """The table that was kept, or a new one."""
        if _SWEEP not in self._kept:
            self._keep(_SWEEP, measure().to_fields())
        return SweepTable.from_fields(self._kept[_SWEEP])

    def trial(self, settings: Sequence[Setting], measure: Callable[[], Effect]) -> Effect:
        """The effect that was kept for these settings, or a new one."""
        name = " ".join(setting.label for setting in settings)
        trials = self._kept.get(_TRIALS, {})
        if name not in trials:
            trials = {**trials, name: dataclasses.asdict(measure())}
            self._keep(_TRIALS, trials)
        return Effect(**trials[name])

    def _keep(self, name: str, fields: Any) -> None:
        self._kept[name] = fields
        if self._checkpoint is not None:
            arrays = {key: np.array(json.dumps(value)) for key, value in self._kept.items()}
            self._checkpoint.save(arrays)
