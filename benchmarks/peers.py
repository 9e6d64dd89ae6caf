"""onnxq beside other quantizers: cost, distance from the original, size, latency.

    python benchmarks/peers.py [SUBJECT ...] [--bits w8a8,w4a8] [--ort PYTHON] [--nncf PYTHON]

Each tool runs in a process of its own, and those of others in an environment of their own (`--ort`:
one with onnxruntime, onnx and sympy; `--nncf`: one with nncf and onnxruntime). All get the same 512
unlabelled images: onnxq as files, the others as arrays that are ready, so that they pay for no
decoding. CPU seconds and peak memory are those of the process. KL divergence and agreement are
measured on the labelled images, whose labels are not read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from models import ASSETS, Subject, subjects

from onnxq import benchmark, evaluate
from onnxq.data.samples import open_samples
from onnxq.load.model import load_original

SAMPLES = 512
OURS = {"onnxq fast": ("--effort", "fast"), "onnxq default": ()}
STATIC = ("minmax", "entropy", "percentile")
BITS: dict[str, tuple[str, ...]] = {"w8a8": (), "w4a8": ("--weight-bits", "4")}
HEADER = (
    "| model | bits | tool | CPU s | peak RSS, MB | KL | agreement | size | latency |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Cost:
    """What a process cost: CPU seconds, peak memory in MB, and its last words if it failed."""

    seconds: float
    memory: float
    failed: str = ""


def run(command: list[str], *, own: bool) -> Cost:
    """Run a command to its end; `own` leaves it this environment's modules."""
    environment = {k: v for k, v in os.environ.items() if own or k != "PYTHONPATH"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    failed = lines[-1] if process.returncode and lines else ""
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, failed)


def write_feeds(subject: Subject, place: Path) -> None:
    """The first images as one array, as the model takes them."""
    original = load_original(subject.model, 13, subject.preprocess)
    samples = open_samples(subject.unlabelled, original.inputs, subject.preprocess, limit=SAMPLES)
    np.save(place, np.concatenate([next(iter(f.values())) for f in samples.batches(64)]))


def commands(
    subject: Subject, bits: str, feeds: Path, out: Path, pythons: dict[str, str]
) -> dict[str, list[str]]:
    """The command of each tool by name."""
    found = {}
    ending = "-w4" if bits == "w4a8" else ""
    for method in STATIC if pythons["ort"] else ():
        found[f"ONNX Runtime {method}"] = [pythons["ort"], "peer.py", method + ending]
    if pythons["nncf"] and not ending:
        found["NNCF"] = [pythons["nncf"], "peer.py", "nncf"]
    here = Path(__file__).parent
    for command in found.values():
        command[1] = str(here / command[1])
        command += [str(subject.model), str(feeds), str(out)]
    way = subject.preprocess
    for name, options in OURS.items():
        found[name] = [
            *(sys.executable, "-m", "onnxq", "compress", str(subject.model), "-o", str(out)),
            *("--data", str(subject.unlabelled), "--samples", str(SAMPLES), "--force"),
            *("--mean", ",".join(map(str, way.mean)), "--std", ",".join(map(str, way.std))),
            *BITS[bits],
            *options,
        ]
    return found


def row(subject: Subject, bits: str, tool: str, cost: Cost, out: Path) -> str:
    """A line of the table."""
    start = f"| {subject.title} | {bits.upper()} | {tool} |"
    if cost.failed:
        return f"{start} {cost.seconds:.0f} | {cost.memory:.0f} | {cost.failed} | | | |"
    found = evaluate(out, subject.labelled, subject.model, preprocess=subject.preprocess)
    timed = benchmark([subject.model, out])
    size = out.stat().st_size / subject.model.stat().st_size
    return (
        f"{start} {cost.seconds:.0f} | {cost.memory:.0f} | {found.kl:.5f} | "
        f"{found.agreement:.2f} | {size:.3f} | {timed[1].ratio:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="subjects; none means all")
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--bits", default=",".join(BITS))
    parser.add_argument("--tools", default="", help="beginnings of names; all by default")
    parser.add_argument("--ort", default="")
    parser.add_argument("--nncf", default="")
    options = parser.parse_args()
    print(HEADER, flush=True)
    found = subjects(options.assets)
    for name in options.names or found:
        subject = found[name]
        with tempfile.TemporaryDirectory() as folder:
            feeds, out = Path(folder) / "feeds.npy", Path(folder) / "out.onnx"
            write_feeds(subject, feeds)
            for bits in options.bits.split(","):
                pythons = {"ort": options.ort, "nncf": options.nncf}
                for tool, command in commands(subject, bits, feeds, out, pythons).items():
                    if tool.startswith(tuple(options.tools.split(","))):
                        cost = run(command, own=tool in OURS)
                        print(row(subject, bits, tool, cost, out), flush=True)


if __name__ == "__main__":
    main()
