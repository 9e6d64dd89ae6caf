"""The original model in the form that is quantized and learned from, with what its file says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxq.data.inputs import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.load.interface import Interface, input_specs
from onnxq.load.model import Loaded
from onnxq.normalise.free_batch import fix_batch
from onnxq.normalise.pipeline import Normalised, normalise
from onnxq.runtime.session import Feeds


@dataclass(frozen=True)
class Original:
    """An original, normalised.

    Attributes:
        path: the file of the original.
        interface: what that takes and gives.
        preprocess: how an image becomes an input; None where nobody said it.
        normalised: its graph, with BatchNormalization folded and not.
        feeds: what the outputs of the two were compared on.
        batch: the size of the batches that samples are put into; None leaves it to the samples.
    """

    path: Path
    interface: Interface
    preprocess: Preprocess | None
    normalised: Normalised
    feeds: Feeds
    batch: int | None = None

    @property
    def model(self) -> ir.Model:
        """The normalised model."""
        return self.normalised.model

    @property
    def inputs(self) -> list[InputSpec]:
        """What it takes."""
        return input_specs(self.model)

    @property
    def least(self) -> int:
        """Samples in a batch of the original, where it fixes that; else 1."""
        return self.normalised.original_batch or 1

    def in_batches_of(self, size: int) -> Original:
        """The same in batches of one size, which its graphs declare now."""
        for model in (self.normalised.model, self.normalised.unfolded):
            fix_batch(model, size)
        return replace(self, batch=size)


def normalise_original(loaded: Loaded, feeds: Feeds, *, whole_feeds: bool) -> Original:
    """Normalise an original, and decide on the size of its batches.

    Args:
        loaded: as its file has it.
        feeds: what the outputs are compared on, before and after.
        whole_feeds: whether samples come in batches of their own.
    """
    normalised = normalise(loaded.model, [feeds])
    original = Original(loaded.path, loaded.interface, loaded.preprocess, normalised, feeds)
    if whole_feeds or normalised.batch_free:
        return original
    return original.in_batches_of(original.least)
