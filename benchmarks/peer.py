"""Quantize a model as another tool does, with the ONNX Runtime or NNCF that is installed here.

    PYTHON benchmarks/peer.py METHOD MODEL FEEDS.npy OUT

METHOD is minmax, entropy or percentile (ONNX Runtime's static quantizer), the same with "-w4"
(weights of type INT4), or nncf. Needs no onnxq, so that it runs in an environment of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class Feeds:
    """Samples one by one, in the form that ONNX Runtime's quantizer asks for."""

    def __init__(self, name: str, samples: np.ndarray) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = ({name: row[None]} for row in samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample; None after the last."""
        return next(self._rows, None)


def static(method: str, model: Path, samples: np.ndarray, out: Path) -> None:
    """ONNX Runtime's static quantizer: QDQ, per channel, activations in uint8 as on x86."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    way, _, low = method.partition("-")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(model), str(prepared))
        q.quantize_static(
            str(prepared),
            str(out),
            Feeds(input_name(model), samples),
            per_channel=True,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt4 if low else q.QuantType.QInt8,
            calibrate_method=getattr(q.CalibrationMethod, CALIBRATIONS[way]),
        )


def nncf(model: Path, samples: np.ndarray, out: Path) -> None:
    """NNCF's post-training quantization with its defaults, on all samples."""
    import nncf as tool
    import onnx

    name = input_name(model)
    data = tool.Dataset(samples, lambda row: {name: row[None]})
    onnx.save(tool.quantize(onnx.load(model), data, subset_size=len(samples)), out)


def input_name(model: Path) -> str:
    """The name of the model's first input that is no initializer."""
    import onnx

    graph: Any = onnx.load(model, load_external_data=False).graph
    held = {each.name for each in graph.initializer}
    return str(next(each.name for each in graph.input if each.name not in held))


CALIBRATIONS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def main(method: str, model: str, feeds: str, out: str) -> None:
    """Write the quantized model."""
    samples = np.load(feeds, mmap_mode="r")
    if method == "nncf":
        nncf(Path(model), samples, Path(out))
    else:
        static(method, Path(model), samples, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
