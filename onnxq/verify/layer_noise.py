"""Noise of the layers' outputs against the original's, in one streaming pass over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxq.data.samples import Samples
from onnxq.progress import Progress
from onnxq.session import Arrays, SessionPool
from onnxq.verify.noise import Noise
from onnxq.verify.outputs import paired_outputs
from onnxq.verify.pairing import PairedLayer
from onnxq.verify.probe import with_outputs

BATCH_SIZE = 16
"""Samples per run at most."""

BATCH_BYTES = 2**26
"""Bytes that the tensors of one run may have: those of a few runs are held at once."""


class LayerNoise:
    """Runs both models side by side and keeps sums alone.

    Args:
        teacher: the normalised original.
        student: the file that was made of it.
        layers: what is compared; those without a tensor are passed over.
        outputs: names of the graph outputs, compared too.
    """

    def __init__(
        self,
        teacher: ir.Model,
        student: ir.Model,
        layers: Sequence[PairedLayer],
        outputs: Sequence[str],
    ) -> None:
        self._factors = {each.tensor: each.factor for each in layers if each.tensor is not None}
        self._tensors = list(dict.fromkeys([*self._factors, *outputs]))
        self._noises: dict[str, Noise] = {}
        self._teacher, self._student = (
            SessionPool(with_outputs(model, self._tensors), self._tensors)
            for model in (teacher, student)
        )

    def measure(self, samples: Samples, progress: Progress) -> None:
        """Compare all tensors on all samples; each sample is read once."""
        progress.start("compare", len(samples))
        size = samples.batch or self._batch_size(next(samples.batches(1)))
        pairs = paired_outputs(self._teacher, self._student, samples, size)
        for done, (expected, found) in enumerate(pairs, start=1):
            for name in self._tensors:
                self._add(name, expected[name], found[name])
            progress.at(min(done * size, len(samples)))
        progress.finish()

    def sqnr_db(self, tensor: str | None) -> float | None:
        """The figure of a tensor; None where there is none that compares."""
        noise = self._noises.get(tensor or "")
        return None if noise is None else noise.sqnr_db()

    def _batch_size(self, feeds: Arrays) -> int:
        """How many samples such as this one are run at once, whatever the machine."""
        arrays = self._teacher.run(feeds).values()
        needed = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
        return max(1, min(BATCH_SIZE, BATCH_BYTES // max(needed, 1)))

    def _add(self, name: str, y: np.ndarray, y_hat: np.ndarray) -> None:
        # Sequences and maps of ai.onnx.ml models are no arrays.
        if not isinstance(y, np.ndarray) or y.dtype.kind != "f" or y.shape != y_hat.shape:
            return
        factor = self._factors.get(name)
        if factor is not None:
            y_hat = y_hat / factor.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 2))
        self._noises.setdefault(name, Noise()).add(y, y_hat)
