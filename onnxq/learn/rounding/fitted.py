"""What was fitted so far, and the checkpoint that keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from onnxq.learn.checkpoint import Checkpoint
from onnxq.learn.rounding.layer import FittedLayer
from onnxq.plan.spec import LayerSpec
from onnxq.rewrite.quantizers import Quantizers

OVER, SAMPLES = "over", "samples"
"""Of a checkpoint: this stage is done, with these notes and with so many samples."""


@dataclass
class Fitted:
    """Layers that were fitted, and how the stage went.

    Attributes:
        layers: by name.
        over: whether none will follow.
        notes: sentences for the user; kept once the stage is over.
        samples: how many were used; kept once the stage is over.
    """

    layers: dict[str, FittedLayer] = field(default_factory=dict)
    over: bool = False
    notes: list[str] = field(default_factory=list)
    samples: int = 0

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> Fitted:
        """What an earlier run saved; nothing where it saved nothing.

        Raises:
            OutputError: the state is damaged, or another run's.
        """
        arrays = checkpoint.load() or {}
        notes, samples = arrays.pop(OVER, None), arrays.pop(SAMPLES, None)
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            key, _, layer = name.partition("/")
            found.setdefault(layer, {})[key] = array
        layers = {layer: FittedLayer.from_arrays(each) for layer, each in found.items()}
        if notes is None or samples is None:
            return cls(layers)
        return cls(layers, True, notes.tolist(), int(samples))

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep all of it.

        Raises:
            OutputError: there is no space, or the folder can't be written.
        """
        named = {
            f"{key}/{layer}": array
            for layer, fitted in self.layers.items()
            for key, array in fitted.arrays().items()
        }
        if self.over:
            named |= {OVER: np.array(self.notes, np.str_), SAMPLES: np.array(self.samples)}
        checkpoint.save(named)

    def put_into(self, quantizers: Quantizers, specs: Iterable[LayerSpec]) -> Quantizers:
        """The numbers with those of all fitted layers."""
        for spec in specs:
            if spec.name in self.layers:
                quantizers = self.layers[spec.name].put_into(quantizers, spec)
        return quantizers
