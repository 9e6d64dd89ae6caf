"""What calibration costs: time against a plain forward pass, and peak memory.

    python benchmarks/calibration_cost.py [--assets DIR] [--workers N]

Both passes read the same images through the same kind of sessions, in turns; the ratio is
that of the medians. Peak memory is that of a fresh process for each number of images.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.calibrate import calibrate
from onnxq.normalise.pipeline import normalise
from onnxq.numerics.clip import CLIP_METHODS, calibrated_range
from onnxq.runtime.session import Arrays, SessionPool, available_cores

BATCH = 32
FOLDED = frozenset(("Relu", "Clip", "LeakyRelu"))


@dataclass(frozen=True)
class Case:
    """A model of the assets, and how its images become inputs."""

    model: str
    images: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    count: int
    rounds: int


CASES = {
    "resnet20": Case(
        "cifar10_resnet20", "cifar10", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1024, 9
    ),
    "mobilenet": Case(
        "imagenet_mobilenet_v1_075_224", "imagenet", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 256, 5
    ),
}


class Images:
    """Preprocessed batches from an .npz array or from a folder; nothing is kept."""

    def __init__(self, assets: Path, case: Case, count: int) -> None:
        self.case, self.count = case, count
        folder = assets / case.images
        if case.images == "cifar10":
            self.source = np.load(folder / "unlabelled.npz")["images"]
        else:
            self.source = sorted((folder / "unlabelled").iterdir())

    def batches(self, size: int) -> Iterator[Arrays]:
        """Feeds of `size` images."""
        mean, std = np.float32(self.case.mean), np.float32(self.case.std)
        for start in range(0, self.count, size):
            part = self.source[start : min(start + size, self.count)]
            pixels = np.stack([_pixels(item) for item in part]).astype(np.float32) / 255
            yield {"input": np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))}


def _pixels(item: np.ndarray | Path) -> np.ndarray:
    if isinstance(item, Path):
        from PIL import Image

        with Image.open(item) as image:
            return np.asarray(image.convert("RGB"))
    return item


class Kept:
    """Batches read once, so that reading is not timed."""

    def __init__(self, images: Images) -> None:
        self.kept = list(images.batches(BATCH))

    def batches(self, size: int) -> Iterator[Arrays]:
        """The kept feeds, whatever the size."""
        yield from self.kept


def load(assets: Path, case: Case) -> ir.Model:
    """The model, normalised."""
    return normalise(ir.load(assets / "models" / f"{case.model}.onnx")).model


def quantized_tensors(model: ir.Model) -> list[str]:
    """The input and every tensor that an int8 export gives a scale: folded ones have none."""
    names = [str(value.name) for value in model.graph.inputs]
    for node in model.graph:
        readers = node.outputs[0].consumers()
        folds = len(readers) == 1 and readers[0].op_type in FOLDED
        if node.op_type in ("Conv", "Add", "Gemm", "GlobalAveragePool", *FOLDED) and not folds:
            names.append(str(node.outputs[0].name))
    return names


def cost(assets: Path, case: Case, workers: int) -> dict[str, float]:
    """Both passes, sessions opened anew each time, by the clock and by CPU time; clip methods."""
    model = load(assets, case)
    tensors = quantized_tensors(model)
    images = Kept(Images(assets, case, case.count))
    wall, cpu = [], []
    for _ in range(case.rounds):
        times = [(time.perf_counter(), time.process_time())]
        for _ in SessionPool(model, None, workers).map(images.batches(BATCH)):
            pass
        times.append((time.perf_counter(), time.process_time()))
        found = calibrate(model, tensors, images, BATCH, workers=workers)
        times.append((time.perf_counter(), time.process_time()))
        (a, b, c) = times
        wall.append((b[0] - a[0], c[0] - b[0]))
        cpu.append((b[1] - a[1], c[1] - b[1]))
    forward, observed = np.median(wall, axis=0)
    metrics = {
        "tensors": len(tensors),
        "forward_s": forward,
        "calibrate_s": observed,
        "ratio": observed / forward,
        "cpu_ratio": np.divide(*np.median(cpu, axis=0)[::-1]),
    }
    for method in CLIP_METHODS:
        start = time.perf_counter()
        for tensor in found.values():
            calibrated_range(tensor, method, 8, "asymmetric" if tensor.minimum < 0 else "positive")
        metrics[f"{method}_ms_per_tensor"] = 1e3 * (time.perf_counter() - start) / len(found)
    return metrics


def peak_memory(assets: Path, case: Case, count: int, workers: int) -> float:
    """Peak resident memory in MB of this process, having calibrated `count` images."""
    model = load(assets, case)
    calibrate(model, quantized_tensors(model), Images(assets, case, count), BATCH, workers=workers)
    # Not getrusage: its figure outlives fork and exec, and would be that of the parent.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_in_subprocess(args: argparse.Namespace, name: str, count: int) -> float:
    """`peak_memory` in a fresh process."""
    command = [sys.executable, __file__, "--assets", str(args.assets), "--workers"]
    command += [str(args.workers), "--peak", name, str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[2] / "shared" / "assets"
    parser.add_argument("--assets", type=Path, default=default)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        name, count = args.peak
        print(json.dumps(peak_memory(args.assets, CASES[name], int(count), args.workers)))
        return
    print(f"{platform.machine()}, {available_cores()} cores, {args.workers} workers")
    for name, case in CASES.items():
        metrics = cost(args.assets, case, args.workers)
        print(name, " ".join(f"{key}={value:.3g}" for key, value in metrics.items()), flush=True)
        peaks = {count: peak_in_subprocess(args, name, count) for count in (100, 1000)}
        growth = peaks[1000] / peaks[100] - 1
        print(name, *(f"peak_{n}={mb:.0f}MB" for n, mb in peaks.items()), f"growth={growth:+.1%}")


if __name__ == "__main__":
    main()
