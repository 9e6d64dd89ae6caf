"""Run models on saved feeds with whatever `onnxruntime` is installed, and save their outputs.

    PYTHON benchmarks/run_outputs.py [--optimised] MODEL FEEDS.npz OUTPUTS.npz [MODEL ...]

Needs numpy and onnxruntime alone, so that it runs in an environment without onnxq. Arrays are
named `<feed number>/<name>` in both files. `--optimised` also writes the graph that ONNX Runtime
runs, beside OUTPUTS with the suffix `.onnx`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(model: str, feeds_path: str, outputs_path: str, optimised: bool) -> None:
    """Save the outputs of one model, in one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimised:
        options.optimized_model_filepath = str(Path(outputs_path).with_suffix(".onnx"))
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


def main(arguments: list[str]) -> None:
    """Run the models one after another, and print the version of ONNX Runtime."""
    optimised = arguments[:1] == ["--optimised"]
    paths = iter(arguments[optimised:])
    for model, feeds, outputs in zip(paths, paths, paths, strict=True):
        run(model, feeds, outputs, optimised)
    print(ort.__version__)


if __name__ == "__main__":
    main(sys.argv[1:])
