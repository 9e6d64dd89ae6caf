"""Images as the thing that is learned: gradient descent on batches of pixels.

ZeroQ (Cai et al., CVPR 2020, section 3.2) begins with noise and moves the images themselves until
the statistics of the network's layers are those that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.learn.engine import Engine
from onnxq.learn.optimizer import Adam
from onnxq.learn.schedule import CosineRestarts
from onnxq.synthesise.objective import LOSS, SynthesisObjective, term_name
from onnxq.synthesise.space import ImageSpace

RATE = 0.5
"""Adam's step at first, in standard deviations of the noise that images start from."""

Terms = dict[str, float]
"""The losses of a batch, by kind."""


class Distilled:
    """Makes batches of images, each one by itself.

    Args:
        model: the float network, unfolded.
        space: of its input.
        objective: what makes images good.
        rate: Adam's first step.
    """

    def __init__(
        self,
        model: ir.Model,
        space: ImageSpace,
        objective: SynthesisObjective,
        rate: float = RATE,
    ) -> None:
        self._space, self._rate, self._kinds = space, rate, objective.kinds
        terms = [term_name(kind) for kind in self._kinds]
        self._engine = Engine(objective.attach(model), [space.name], LOSS, terms)

    def begin(self, seeds: Sequence[Sequence[int]], size: int, steps: int) -> Descent:
        """Noise for one batch per seed, ready to be moved."""
        batches = [self._space.noise(np.random.default_rng(seed), size) for seed in seeds]
        return Descent(self._engine, self._kinds, self._space, batches, self._rate, steps)


class Descent:
    """A few batches on their way from noise to images, side by side.

    Args:
        engine: gives losses and gradients of a batch.
        kinds: of the losses.
        space: keeps images in their range.
        batches: where they start; they are moved in place.
        rate: Adam's first step.
        steps: how many steps the rate takes to fall to 0.
    """

    def __init__(
        self,
        engine: Engine,
        kinds: Sequence[str],
        space: ImageSpace,
        batches: list[np.ndarray],
        rate: float,
        steps: int,
    ) -> None:
        self.batches, self.steps, self.done = batches, steps, 0
        self._engine, self._kinds, self._space, self._rate = engine, kinds, space, rate
        self._optimizers = [Adam(rate) for _ in batches]

    def step(self) -> Terms:
        """Move each batch once.

        Returns:
            The losses before, means over the batches.
        """
        name = self._space.name
        schedule = CosineRestarts(self._rate, max(self.steps, 1))
        found = self._engine.each([{name: images} for images in self.batches])
        for images, optimizer, (_, gradients) in zip(
            self.batches, self._optimizers, found, strict=True
        ):
            optimizer.lr = schedule.lr(min(self.done, self.steps - 1))
            unit = self._space.spread
            moved = {name: images / unit}
            optimizer.step(moved, {name: gradients[name] * unit})
            np.multiply(moved[name], unit, out=images)
            self._space.clip(images)
        self.done += 1
        return {
            kind: float(np.mean([outputs[term_name(kind)] for outputs, _ in found]))
            for kind in self._kinds
        }
