"""What becomes of the training samples from one epoch to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from onnxq.rewrite.quantizers import Quantizers
from onnxq.session import Arrays


class Changes(Protocol):
    """Changes the feeds of an epoch; what has no state and nothing to say leaves out the rest."""

    def changed(
        self, batches: Iterator[Arrays], positions: np.ndarray, epoch: int
    ) -> Iterator[Arrays]:
        """The feeds of some positions with other samples and the teacher's targets for them.

        Args:
            batches: feeds of these positions, in this order.
            positions: the positions, `(n,)`; less than all where an epoch goes on.
            epoch: which pass over the samples it is.
        """

    def begin(self, quantizers: Quantizers, late: Callable[[], bool]) -> None:
        """An epoch begins.

        Args:
            quantizers: the student's numbers now.
            late: whether the time is up.
        """
        return None

    def text(self) -> str:
        """How it goes, for progress."""
        return ""

    def state(self) -> Arrays:
        """All that a later epoch depends on, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a saved state."""
        return None
