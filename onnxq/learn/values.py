"""What a loop of training moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from onnxq.session import Arrays


class Values(Protocol):
    """What is trained.

    Attributes:
        values: float32 arrays by key, changed in place.
        groups: what each of them is, which says its learning rate, by key.
    """

    values: Arrays
    groups: dict[str, str]

    def project(self) -> None:
        """Put every value back into its bounds, in place."""

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every value, in place."""

    def real_rates(self) -> Mapping[str, float | np.ndarray]:
        """By key, the rate of a value for which gradient descent moves the real one at 1."""
