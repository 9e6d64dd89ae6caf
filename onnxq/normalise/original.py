"""The original model: normalised, with its file's interface and preprocessing."""

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
    """A normalised original.

    Attributes:
        path: the file of the original.
        interface: inputs and outputs of the file.
        preprocess: how an image becomes an input; None where unknown.
        normalised: its graph, with BatchNormalization folded and not.
        feeds: the feeds on which the outputs of the two were compared.
        batch: the batch size for samples; None keeps theirs.
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
        """The inputs of the normalised model."""
        return input_specs(self.model)

    @property
    def least(self) -> int:
        """The batch size of the original, where it fixes one; else 1."""
        return self.normalised.original_batch or 1

    def in_batches_of(self, size: int) -> Original:
        """The same original with this batch size, which its graphs declare."""
        for model in (self.normalised.model, self.normalised.unfolded):
            fix_batch(model, size)
        return replace(self, batch=size)


def normalise_original(loaded: Loaded, feeds: Feeds, *, whole_feeds: bool) -> Original:
    """Normalise an original, and choose its batch size.

    Args:
        loaded: the loaded model.
        feeds: the feeds to compare outputs on, before and after.
        whole_feeds: whether samples are whole feeds with batches of their own.
    """
    normalised = normalise(loaded.model, [feeds])
    original = Original(loaded.path, loaded.interface, loaded.preprocess, normalised, feeds)
    if whole_feeds or normalised.batch_free:
        return original
    return original.in_batches_of(original.least)
