"""Optimizers and learning-rate schedules over named arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np

from onnxq.runtime.session import Arrays


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine annealing with warm restarts (Loshchilov and Hutter 2017, equation 5).

    lr(t) = base_lr / 2 * (1 + cos(pi t_cur / T)), where t_cur counts the steps since the
    last restart and T is the length of a cycle.

    Args:
        base_lr: rate at the start of every cycle.
        period: steps of a cycle.
    """

    base_lr: float
    period: int

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"period must be at least 1, found {self.period}")

    def lr(self, step: int) -> float:
        """The learning rate of a step; steps count from 0."""
        return self.base_lr / 2 * (1 + math.cos(math.pi * (step % self.period) / self.period))

    def restarts_at(self, step: int) -> bool:
        """Whether a cycle after the first starts with this step; FAT resets the optimizer there."""
        return step > 0 and step % self.period == 0


def flattened(groups: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays:
    """The arrays of all groups by `group/name`."""
    return {f"{group}/{name}": v for group, part in groups.items() for name, v in part.items()}


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Arrays]:
    """The inverse of `flattened`; names without a slash belong to no group and are left out."""
    groups: dict[str, Arrays] = {}
    for key, array in arrays.items():
        group, slash, name = key.partition("/")
        if slash:
            groups.setdefault(group, {})[name] = array
    return groups


Rates = Mapping[str, "float | np.ndarray"]
"""The learning rate of each array relative to the optimizer's, by name."""

ALL_EQUAL: Rates = MappingProxyType({})


class Optimizer(Protocol):
    """The interface of an optimizer; `lr` may be set before each step."""

    lr: float

    def step(self, parameters: Arrays, gradients: Mapping[str, np.ndarray]) -> None:
        """Update the parameters that have a gradient, in place."""

    def reset(self) -> None:
        """Reset the state; the options stay."""

    def state(self) -> Arrays:
        """A copy of the state."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""


FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8
"""b1, b2 and eps of Adam, as its authors give them."""

MOMENTUM = 0.9
"""mu of gradient descent."""


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1).

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
    p = p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    with b1 = 0.9, b2 = 0.999 and eps = 1e-8.

    Args:
        lr: step size.
        rates: learning rates of single arrays, relative to `lr`; 1 where none is given.
    """

    def __init__(self, lr: float = 1e-3, rates: Rates = ALL_EQUAL) -> None:
        self.lr = lr
        self.rates = rates
        self.reset()

    def reset(self) -> None:
        """Reset the moments and the number of steps."""
        self._steps = 0
        self._first: Arrays = {}
        self._second: Arrays = {}

    def step(self, parameters: Arrays, gradients: Mapping[str, np.ndarray]) -> None:
        """Update the parameters that have a gradient, in place.

        Args:
            parameters: float32 arrays by name.
            gradients: arrays of the same shapes; parameters without one are left unchanged.
        """
        self._steps += 1
        first_bias = 1 - FIRST_DECAY**self._steps
        second_bias = 1 - SECOND_DECAY**self._steps
        for name, gradient in gradients.items():
            first = self._first.setdefault(name, np.zeros_like(gradient))
            second = self._second.setdefault(name, np.zeros_like(gradient))
            first += (1 - FIRST_DECAY) * (gradient - first)
            second += (1 - SECOND_DECAY) * (gradient * gradient - second)
            size = np.sqrt(second / second_bias) + EPSILON
            rate = self.lr * self.rates.get(name, 1.0)
            _subtract(parameters[name], rate / first_bias * first / size)

    def state(self) -> Arrays:
        """The step count and the moments, as copies."""
        moments = {"first": self._first, "second": self._second}
        return {"steps": np.array(self._steps), **_copied(moments)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self._steps = int(state["steps"])
        self._first = _group(state, "first")
        self._second = _group(state, "second")


class SGD:
    """Gradient descent with heavy-ball momentum (Polyak 1964): v = mu v + g; p = p - lr v.

    Args:
        lr: step size.
        rates: learning rates of single arrays, relative to `lr`; 1 where none is given.
    """

    def __init__(self, lr: float = 1e-2, rates: Rates = ALL_EQUAL) -> None:
        self.lr = lr
        self.rates = rates
        self.reset()

    def reset(self) -> None:
        """Reset the velocities."""
        self._velocity: Arrays = {}

    def step(self, parameters: Arrays, gradients: Mapping[str, np.ndarray]) -> None:
        """Update the parameters that have a gradient, in place."""
        for name, gradient in gradients.items():
            velocity = self._velocity.setdefault(name, np.zeros_like(gradient))
            velocity *= MOMENTUM
            velocity += gradient
            rate = self.lr * self.rates.get(name, 1.0)
            _subtract(parameters[name], rate * velocity)

    def state(self) -> Arrays:
        """The velocities, as copies."""
        return _copied({"velocity": self._velocity})

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a saved state."""
        self._velocity = _group(state, "velocity")


def _subtract(parameter: np.ndarray, update: np.ndarray) -> None:
    np.subtract(parameter, update.astype(parameter.dtype, copy=False), out=parameter)


def _copied(groups: Mapping[str, Arrays]) -> Arrays:
    return {key: array.copy() for key, array in flattened(groups).items()}


def _group(state: Mapping[str, np.ndarray], name: str) -> Arrays:
    return {key: array.copy() for key, array in nested(state).get(name, {}).items()}
