"""Compress real networks with inputs of their own kind, and measure them in their own terms.

    python benchmarks/real.py [NAME ...] [--assets DIR] [--newest PYTHON] [--max-minutes M]

Each model is compressed by `onnxq compress` with default options. What it wrote is compared with
the original on inputs that compression has not seen, one thread, in the installed ONNX Runtime and
in that of another environment (`--newest`, or the variable ONNXQ_NEWEST_PYTHON), which needs numpy
and onnxruntime alone. Runs of the two models alternate; the latency is the ratio of the medians.
A line for each model is written to the table, where other models keep theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Arrays = dict[str, np.ndarray]
Outputs = list[list[np.ndarray]]
"""Of each feed, the outputs in order."""

ROUNDS, MOST_SECONDS = 60, 40.0
HEAD = (
    "| model | size | worst output, dB | task | in integers | latency | runtime |\n"
    "|---|---|---|---|---|---|---|\n"
)


def feeds_of(folder: Path) -> Iterator[Arrays]:
    """The test inputs, one sample a feed."""
    files = sorted((folder / "test").glob("*.npz"))
    for file in files:
        yield dict(np.load(file))
    if not files:
        arrays = dict(np.load(folder / "test.npz"))
        for i in range(len(next(iter(arrays.values())))):
            yield {name: array[i : i + 1] for name, array in arrays.items()}


def session_of(model: Path) -> ort.InferenceSession:
    """The model on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def decibels(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """10 log10(sum y² / sum (y - ŷ)²) over all feeds, at most 200."""
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(expected, found, strict=True)]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    signal = sum(float(np.square(a).sum()) for a, _ in pairs)
    return min(10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)), 200.0)


def found_again(expected: list[np.ndarray], found: list[np.ndarray], threshold: float) -> str:
    """Recall and precision of the scores above a threshold."""
    a, b = (
        np.concatenate([each.ravel() for each in rows]) > threshold for rows in (expected, found)
    )
    recall, precision = (a & b).sum() / max(a.sum(), 1), (a & b).sum() / max(b.sum(), 1)
    return f"of {a.sum()} scores over {threshold:g}: recall {recall:.1%}, precision {precision:.1%}"


def yolo(expected: Outputs, found: Outputs) -> str:
    """Four rows of boxes, then rows of scores."""
    rows = [[each[0] for each in outputs] for outputs in (expected, found)]
    boxes, scores = ([[e[:, s] for e in each] for each in rows] for s in (np.s_[:4], np.s_[4:]))
    parts = f"boxes {decibels(*boxes):.1f} dB, scores {decibels(*scores):.1f} dB; "
    return parts + found_again(scores[0], scores[1], 0.1)


def nanodet(expected: Outputs, found: Outputs) -> str:
    """Three outputs of 80 scores, then three of boxes."""
    scores = ([array for feed in outputs for array in feed[:3]] for outputs in (expected, found))
    return found_again(*scores, 0.3)


def strings(expected: Outputs, found: Outputs) -> str:
    """The most probable symbol of each step; repeats are one symbol, the commonest is none."""
    best = [[feed[0].argmax(-1).ravel() for feed in outputs] for outputs in (expected, found)]
    blank = np.bincount(np.concatenate(best[0])).argmax()

    def read(symbols: np.ndarray) -> list[int]:
        new = np.flatnonzero(np.diff(symbols, prepend=-1))
        return [int(each) for each in symbols[new] if each != blank]

    kept = [read(a) == read(b) for a, b in zip(*best, strict=True)]
    return f"{np.mean(kept):.1%} of {len(kept)} strings kept"


def cosine(expected: Outputs, found: Outputs) -> str:
    """The mean cosine of the vectors along the last axis of the first output."""
    pairs = [(a[0], b[0]) for a, b in zip(expected, found, strict=True)]
    norms = [np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) for a, b in pairs]
    each = [((a * b).sum(-1) / n).ravel() for (a, b), n in zip(pairs, norms, strict=True)]
    return f"cosine {np.concatenate(each).mean():.4f}"


TASKS: dict[str, Callable[[Outputs, Outputs], str]] = {
    "yolov8n_320": yolo,
    "nanodet_m": nanodet,
    "ppocr4_rec": strings,
    "captcha_crnn": strings,
    "minilm_l3": cosine,
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """What the compressed model is like in the runtime that this process has."""
    sessions = [session_of(folder / file) for file in ("model.onnx", "compressed.onnx")]
    feeds = list(feeds_of(folder))
    expected, found = ([session.run(None, feed) for feed in feeds] for session in sessions)
    floats = [i for i, array in enumerate(expected[0]) if array.dtype.kind == "f"]
    worst = min(decibels([e[i] for e in expected], [f[i] for f in found]) for i in floats)
    task = TASKS[name](expected, found) if name in TASKS else ""
    return {
        "worst": worst,
        "task": task,
        "latency": latency(sessions, feeds[0]),
        "runtime": ort.__version__,
    }


def latency(sessions: list[ort.InferenceSession], feed: Arrays) -> float:
    """The ratio of the second model's median time to the first's; their runs alternate."""
    times: list[list[float]] = [[], []]
    end = time.perf_counter() + MOST_SECONDS
    for _ in range(ROUNDS):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            own.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return float(np.median(times[1]) / np.median(times[0]))


def in_runtime(python: str, name: str, folder: Path) -> dict[str, Any]:
    """`measure` in a fresh process of some environment."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, __file__, "--measure", name, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(name: str, args: argparse.Namespace, folder: Path) -> str:
    """Prepare, compress and measure one model: its lines of the table."""
    prepare = args.assets / "real" / "prepare.py"
    subprocess.run([sys.executable, prepare, name, folder], check=True, stdout=subprocess.DEVNULL)
    data = folder / "calib" if (folder / "calib").is_dir() else folder / "calib.npz"
    model, out = folder / "model.onnx", folder / "compressed.onnx"
    command = [
        sys.executable,
        "-m",
        "onnxq",
        "compress",
        model,
        "--data",
        data,
        "-o",
        out,
        "--json",
    ]
    command += ["--max-minutes", str(args.max_minutes), *args.option]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1].replace(str(folder) + "/", "")
        return f"| {name} | {reason} | | | | | |\n"
    metrics = json.loads(done.stdout)["figures"]
    integers = f"{metrics['integer_layers']} of {metrics['layers'] + len(metrics['left_alone'])}"
    size, lines = metrics["size_after"] / metrics["size_before"], ""
    for python in filter(None, (sys.executable, args.newest)):
        each = in_runtime(python, name, folder)
        lines += (
            f"| {name} | {size:.3f} | {each['worst']:.1f} | {each['task']} | {integers} | "
            f"{each['latency']:.2f} | {each['runtime']} |\n"
        )
    return lines


def written(table: Path, name: str, lines: str) -> None:
    """Put a model's lines into the table, in the place of those that it had."""
    text = table.read_text() if table.exists() else ""
    before, head, rows = text.partition(HEAD)
    kept = [each for each in rows.splitlines(True) if not each.startswith(f"| {name} |")]
    table.write_text((before if head else "# Real networks\n\n") + HEAD + "".join([*kept, lines]))


def main() -> None:
    """Measure the named models, or all; or, for another environment, one compressed model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--assets", type=Path, default=Path("../shared/assets"))
    parser.add_argument("--newest", default=os.environ.get("ONNXQ_NEWEST_PYTHON"))
    parser.add_argument("--max-minutes", type=float, default=5.0)
    parser.add_argument("--option", action="append", default=[], help="a further one of compress")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    every = sorted(path.name for path in (args.assets / "real").iterdir() if path.is_dir())
    for name in args.names or every:
        with tempfile.TemporaryDirectory() as folder:
            lines = row(name, args, Path(folder))
        print(lines, end="", flush=True)
        written(args.out, name, lines)


if __name__ == "__main__":
    main()
