"""Whether what was written of a valid model is smaller and computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from fuzzing.valid import Arrays

LEAST_DB = 20.0


def compare_files(original: Path, written: Path, feeds: Arrays) -> str | None:
    """What is wrong with a written file; None where nothing is.

    Args:
        original: the model.
        written: what was made of it.
        feeds: samples that compression has not seen.
    """
    if written.stat().st_size > original.stat().st_size:
        return f"larger than the original, {written.stat().st_size / original.stat().st_size:.2f}"
    expected, found = (_outputs(path, feeds) for path in (original, written))
    if expected.keys() != found.keys():
        return "other outputs"
    worst = min(sqnr(expected[name], found[name]) for name in expected)
    return None if worst >= LEAST_DB else f"poor, {worst:.0f} dB"


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """The ratio of signal to noise in dB; of arrays of other shapes minus infinity."""
    if expected.shape != found.shape:
        return -np.inf
    signal = float(np.sum(np.square(expected, dtype=np.float64)))
    noise = float(np.sum(np.square(expected.astype(np.float64) - found)))
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def runs(model: Path, feeds: Arrays) -> bool:
    """Whether ONNX Runtime runs a model to finite outputs."""
    return all(np.isfinite(array).all() for array in _outputs(model, feeds).values())


def _outputs(model: Path, feeds: Arrays) -> Arrays:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
