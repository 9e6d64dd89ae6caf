"""Run a model on saved feeds with whatever `onnxruntime` is installed, and save its outputs.

    PYTHON benchmarks/run_outputs.py MODEL FEEDS.npz OUTPUTS.npz

Needs numpy and onnxruntime alone, so that it runs in an environment without onnxq. Arrays are
named `<feed number>/<name>` in both files.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import onnxruntime as ort


def main(model: str, feeds_path: str, outputs_path: str) -> None:
    """Prints the version, the inputs being those of one run after another."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for key, array in np.load(feeds_path).items():
        number, name = key.split("/", 1)
        feeds[number][name] = array
    names = [output.name for output in session.get_outputs()]
    outputs = {}
    for number, feed in feeds.items():
        for name, array in zip(names, session.run(names, feed), strict=True):
            outputs[f"{number}/{name}"] = array
    np.savez(outputs_path, **outputs)
    print(ort.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
