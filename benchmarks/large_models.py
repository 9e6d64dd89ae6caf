"""Time, memory and size at real size: VGG-16 and ResNet-50 with the settings of Thonglek et al.

    python benchmarks/large_models.py [vgg16 resnet50 wide] [--learn float-layers] [--out FOLDER]

The weights are random, made by `tools.make_large_models`: time, memory and file sizes are those of
trained models, accuracy and deflated sizes are not. The images are random too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from onnxq import Recipe
from onnxq.options.recipe import LayerOverride, save_recipe
from onnxq.plan.layers import find_layers
from tools.make_large_models import make, save

ROOT = Path(__file__).parents[1]
PAPER = {"vgg16": (range(14, 16), 32, 81.10), "resnet50": (range(13, 50), 256, 52.54)}
"""Weight layers, from 1, their centroids, and the paper's reduction in percent."""
IMAGES = 64
FEATURES = 1024
POLL_SECONDS = 0.05


def recipe_of(name: str, model: ir.Model, options: argparse.Namespace) -> Recipe:
    """The paper's settings; of `wide` all layers have codes."""
    if name not in PAPER:
        return Recipe(samples=16, learn=("none",), calibration="max", max_minutes=options.minutes)
    numbers, count, _ = PAPER[name]
    names = [str(layer.node.name) for layer in find_layers(model.graph)[0]]
    floats = [n for i, n in enumerate(names, start=1) if i not in numbers]
    return Recipe(
        samples=options.samples,
        activation_bits=None,
        granularity="per-tensor",
        equalize=False,
        codebook=count,
        bias_centroids=1,
        learn=(options.learn,),
        max_minutes=options.minutes,
        layers=tuple(LayerOverride(pattern=n, keep_float=True) for n in floats),
    )


def measured(command: Sequence[str]) -> tuple[str, float, float, float]:
    """Standard output, seconds, seconds of processor time and peak memory in GB of a command."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, cwd=ROOT)
        watched = psutil.Process(process.pid)
        cpu = 0.0
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
                cpu = sum(watched.cpu_times()[:2])
            except psutil.Error:
                break
            time.sleep(POLL_SECONDS)
        code = process.wait()
        output.seek(0)
        text = output.read()
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {code}")
    return text, time.monotonic() - began, cpu, peak / 1e9


def run(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Make a model, compress it, and print a line of the table."""
    path, recipe, data = folder / f"{name}.onnx", folder / "recipe.toml", folder / "samples.npz"
    model = make(name)
    save(model, path)
    generator = np.random.default_rng(0)
    if name == "wide":
        np.savez(data, input=generator.standard_normal((IMAGES, FEATURES), np.float32))
    else:
        shape = (IMAGES, 224, 224, 3)
        np.savez(data, images=generator.integers(0, 256, shape, dtype=np.uint8))
    save_recipe(recipe_of(name, model, options), recipe)
    del model
    command = [sys.executable, "-m", "onnxq", "compress", str(path), "--data", str(data)]
    command += ["--recipe", str(recipe), "-o", str(folder / "out.onnx"), "--json", "--force"]
    text, seconds, cpu, peak = measured(command)
    metrics = json.loads(text)["figures"]
    file = 100 * (1 - metrics["size_after"] / metrics["size_before"])
    shipped = 100 * (1 - metrics["shipped_after"] / metrics["shipped_before"])
    paper = f"{PAPER[name][2]:.2f}" if name in PAPER else "-"
    error = metrics["learning"]
    print(
        f"| {name} | {options.learn if name in PAPER else 'none'} | {seconds:.0f} | {cpu:.0f} | "
        f"{peak:.2f} | {metrics['size_before'] / 1e6:.1f} | {metrics['size_after'] / 1e6:.1f} | "
        f"{file:.2f} | {shipped:.2f} | {paper} | {error['start_score']:.4f} | "
        f"{error['score']:.4f} |",
        flush=True,
    )
    for each in folder.iterdir():
        each.unlink()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["vgg16", "resnet50"])
    parser.add_argument("--learn", default="none")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="a folder for the large files")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores\n")
    print(
        "| model | learned | seconds | processor seconds | peak GB | MB before | MB after | "
        "file smaller by % | deflated by % | paper % | error at the start | error at the end |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            run(name, Path(folder), options)


if __name__ == "__main__":
    main()
