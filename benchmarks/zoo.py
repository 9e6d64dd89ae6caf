"""Compress every model of a zoo of small real models; write a table of what came out.

    python benchmarks/zoo.py [--assets DIR] [--newest PYTHON] [--only NAME ...] [--out FILE]

Each model runs in a process of its own, so that one that crashes is one line of the table.
Metrics are kept as JSON beside the table.
The exported file is opened with the installed ONNX Runtime and, where `--newest` (or the
variable ONNXQ_NEWEST_PYTHON) names the Python of an environment with another, with that too.
Signal to noise is measured against the original file on feeds that compression has not seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from zoo_inputs import LARGE, make_feeds, save_feeds

import onnxq.pipeline
from onnxq.errors import OnnxqError
from onnxq.options.recipe import Recipe
from onnxq.runtime.session import Arrays, available_cores, open_session

SAMPLES, FRESH = 64, 16
TARGET_DB, AGREES_DB = 20.0, 30.0
EXACT_DB = 200.0
"""What stands for an error of zero."""

Outputs = dict[str, list[np.ndarray]]


def run_all(model: Path, feeds: list[Arrays]) -> Outputs:
    """The outputs of the installed ONNX Runtime, by name."""
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, feed) for feed in feeds]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def run_elsewhere(python: str, model: Path, feeds: list[Arrays], folder: Path) -> Outputs:
    """The outputs of another environment's ONNX Runtime, by name."""
    places = folder / "feeds.npz", folder / "outputs.npz"
    np.savez(places[0], **{f"{i}/{name}": a for i, f in enumerate(feeds) for name, a in f.items()})
    script = Path(__file__).with_name("run_outputs.py")
    command = [python, str(script), str(model), *map(str, places)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: Outputs = {}
    for key, array in np.load(places[1]).items():
        found.setdefault(key.split("/", 1)[1], []).append(array)
    return found


def sqnr_db(reference: list[np.ndarray], found: list[np.ndarray]) -> float:
    """10 log10(sum y² / sum (y - ŷ)²) over all feeds; 200 dB stands for no error at all."""
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(reference, found, strict=True)]
    noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    signal = sum(float((a**2).sum()) for a, _ in pairs)
    if math.isnan(noise):
        return -math.inf
    return 10 * math.log10(max(signal, 1e-30) / noise) if noise else EXACT_DB


def compare(reference: Outputs, found: Outputs) -> dict[str, float]:
    """The signal to noise of each output."""
    return {name: min(sqnr_db(reference[name], found[name]), EXACT_DB) for name in reference}


def compress_one(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What compression of a model came to, as plain data."""
    model = args.assets / "zoo" / f"{name}.onnx"
    count = LARGE.get(name, SAMPLES)
    feeds = make_feeds(name, args.assets, count + FRESH)
    data, out = save_feeds(feeds[:count], folder / "data"), folder / f"{name}.int8.onnx"
    recipe = Recipe(samples=count, epochs=args.epochs, max_minutes=args.max_minutes)
    start = time.perf_counter()
    try:
        result = onnxq.pipeline.compress(model, data, recipe, out=out, force=True)
    except OnnxqError as error:
        # Where the models lie is no result.
        text = str(error).replace(str(model), model.name)
        return {"refused": f"{type(error).__name__}: {text}"}
    metrics = result.metrics
    reference, found = run_all(model, feeds[count:]), run_all(out, feeds[count:])
    newest = {}
    if args.newest:
        elsewhere = run_elsewhere(args.newest, out, feeds[count:], folder)
        newest = compare(found, elsewhere)
    return {
        "seconds": time.perf_counter() - start,
        "integer": metrics.integer_layers,
        "weight_only": len(metrics.weight_only),
        "left_alone": len(metrics.left_alone),
        "layers": metrics.layers,
        "size": out.stat().st_size / model.stat().st_size,
        "latency": metrics.latency_ratio,
        "sqnr": compare(reference, found),
        "newest": newest,
        "learning": metrics.learning,
        "notes": result.notes,
        "reasons": {**metrics.weight_only, **metrics.left_alone},
    }


def in_subprocess(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`compress_one` in a fresh process; a crash comes back as its last line."""
    command = [sys.executable, __file__, "--one", name, "--assets", str(args.assets)]
    command += ["--epochs", str(args.epochs), "--max-minutes", str(args.max_minutes)]
    command += ["--newest", args.newest] if args.newest else []
    command += ["--keep", str(args.keep)] if args.keep else []
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"crashed": f"exit {done.returncode}: {lines[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    for kind in ("refused", "crashed"):
        if kind in found:
            text = str(found[kind]).replace("|", "\\|").replace("\n", " ")
            return f"| {name} | {kind} | | | | | | {text} |"
    metrics = list(found["sqnr"].values())
    worst, main = min(metrics), metrics[0]
    newest = min(found["newest"].values()) if found["newest"] else None
    return (
        f"| {name} | compressed | {found['integer']} / {found['weight_only']} / "
        f"{found['left_alone']} | {found['size']:.2f} | {found['latency']:.2f} | "
        f"{_decibels(worst)} / {_decibels(main)} | {_decibels(newest)} | {_note(found)} |"
    )


def _decibels(value: float | None) -> str:
    if value is None:
        return "not run"
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _note(found: dict[str, Any]) -> str:
    learning = found["learning"]
    start, score = learning["start_score"], learning["learned_score"]
    told = f"learned, held-out error {start:.4g} → {score:.4g}" if learning["epoch"] else ""
    notes = [told, *found["notes"]]
    return "; ".join(note for note in notes if note).replace("|", "\\|").replace("\n", " ")


def summary(results: dict[str, dict[str, Any]]) -> str:
    """How many were compressed, how many of them well, how many refused and how many crashed."""
    done = [r for r in results.values() if "sqnr" in r]
    good = sum(min(r["sqnr"].values()) >= TARGET_DB for r in done)
    refused = sum("refused" in r for r in results.values())
    crashed = sum("crashed" in r for r in results.values())
    differ = sum(bool(r["newest"]) and min(r["newest"].values()) < AGREES_DB for r in done)
    return (
        f"{len(results)} models: {len(done)} compressed, {good} of them with at least "
        f"{TARGET_DB:.0f} dB on every output; {refused} refused; {crashed} crashed; {differ} "
        f"whose outputs differ between the two ONNX Runtimes (under {AGREES_DB:.0f} dB)."
    )


HEAD = """\
| model | result | layers: integer / weight-only / left alone | size | latency | SQNR dB: worst / \
first output | SQNR dB between runtimes | note |
|---|---|---|---|---|---|---|---|
"""


def table(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """The whole report, in Markdown."""
    machine = f"{available_cores()} cores {platform.machine().replace('_', '-')}"
    return (
        f"# The zoo\n\n{datetime.now(UTC):%Y-%m-%d}, {machine}; `python benchmarks/zoo.py`; "
        f"default recipe with {SAMPLES} samples and {args.epochs} epochs; SQNR against the "
        f"original file on {FRESH} fresh feeds of the model's own kind; size and latency "
        f"(one thread, batch 1) as a ratio to the original.\n\n{summary(results)}\n\n{HEAD}"
        + "\n".join(row(name, found) for name, found in results.items())
        + "\n"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[2] / "shared" / "assets"
    parser.add_argument("--assets", type=Path, default=default)
    parser.add_argument("--newest", default=os.environ.get("ONNXQ_NEWEST_PYTHON", ""))
    parser.add_argument("--only", nargs="*", help="models to run again; other rows stay")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-minutes", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("zoo.md"))
    parser.add_argument("--keep", type=Path, help="folder for the exported files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print a line for each model and write the table."""
    args = parse()
    if args.one:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            place = args.keep / args.one if args.keep else Path(folder)
            print(json.dumps(compress_one(args.one, args, place)))
        return
    names = sorted(path.stem for path in (args.assets / "zoo").glob("*.onnx"))
    metrics = args.out.with_suffix(".json")
    known = json.loads(metrics.read_text(encoding="utf-8")) if metrics.exists() else {}
    for name in args.only or names:
        known[name] = in_subprocess(name, args)
        print(row(name, known[name]), flush=True)
        metrics.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    results = {name: known[name] for name in names if name in known}
    print(summary(results))
    args.out.write_text(table(results, args), encoding="utf-8")


if __name__ == "__main__":
    main()
