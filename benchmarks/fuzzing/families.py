"""Families of cases: from a number to the files and the command of one case.

Of the cases of each family every tenth is valid, and has to be taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fuzzing import sample_files, settings
from fuzzing.byte_mutations import mutate_bytes
from fuzzing.field_mutations import mutate_fields
from fuzzing.graph_mutations import mutate_graph
from fuzzing.valid import Valid, save_arrays, valid_model

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "sample_models" / "digits_mlp.onnx"

QUICK = ("--learn", "none", "--threads", "1")
FEW = ("--samples", "8")
"""Samples where what comes out need not be good."""
LEARNS = (
    "auto", "auto", "thresholds", "rounding", "steps", "weights", "biases", "float-layers",
)  # fmt: skip
OPTIONS: tuple[tuple[str, ...], ...] = (
    ("--weight-bits", "4"), ("--weight-bits", "2"), ("--activation-bits", "none"),
    ("--activation-bits", "4"), ("--granularity", "per-tensor"), ("--calibration", "kl"),
    ("--calibration", "percentile"), ("--codebook", "16"), ("--target", "int4"), ("--symmetric",),
    ("--target", "cpu-avx2"), ("--bias-centroids", "8"), ("--no-equalize",), ("--json",),
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A case whose files are written.

    Attributes:
        kind: what it is, for the line.
        arguments: of the command `onnxq`.
        valid: a valid model; None where anything may be wrong.
        taken: whether a refusal is a failure.
        out: the file that success writes, if any.
    """

    kind: str
    arguments: list[str]
    valid: Valid | None = None
    taken: bool = False
    out: Path | None = None


def prepare(family: str, seed: int, folder: Path, compressed: Path) -> Prepared:
    """Write the files of a case into an empty folder.

    Args:
        family: its name.
        seed: its number; every tenth is valid.
        folder: where its files go.
        compressed: a file that onnxq wrote, to be damaged.
    """
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])
    make, _ = FAMILIES[family]
    return make(rng, is_valid(seed), folder, compressed)


def is_valid(seed: int) -> bool:
    """Whether the case of a number is valid, whatever its family."""
    return seed % 10 == 0


def _inspect(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    model, made, kind = _model(rng, valid, folder, compressed)
    choice = rng.random()
    if choice < 0.7:
        arguments = ["inspect", str(model), *(["--json"] if rng.random() < 0.3 else [])]
    elif choice < 0.9:
        arguments = ["compress", str(model), "--dry-run", *([] if valid else _options(rng, 0.5))]
    elif choice < 0.95:
        arguments = ["benchmark", str(model), "--rounds", "1"]
        if made is not None:
            arguments += ["--data", str(_data(made, folder))]
    else:
        data = _data(made or valid_model(rng), folder)
        arguments = ["evaluate", str(model), "--data", str(data), "--reference", str(model)]
    return Prepared(f"{arguments[0]} {kind}", arguments, None, valid)


def _compress(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    model, made, kind = _model(rng, valid, folder, compressed)
    arguments, out = _command(model, _data(made or valid_model(rng), folder), folder)
    more = [] if valid else [*FEW, *_options(rng, 0.4)]
    return Prepared(kind, [*arguments, *QUICK, *more], made if valid else None, valid, out)


def _learn(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    taken = valid or bool(rng.random() < 0.5)
    model, made, kind = _model(rng, taken, folder, compressed)
    arguments, out = _command(model, _data(made or valid_model(rng), folder), folder)
    arguments += ["--max-minutes", "0.02", "--epochs", "1", "--threads", "1"]
    if valid:
        return Prepared(kind, arguments, made, True, out)
    if rng.random() < 0.1:
        at = arguments.index("--data")
        arguments[at : at + 2] = ["--data-free"]
        kind += ", data-free"
    learn = LEARNS[rng.integers(len(LEARNS))]
    arguments += ["--learn", learn, "--samples", "16", *_options(rng, 0.4)]
    return Prepared(f"{learn} {kind}", arguments, None, False, out)


def _samples(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    if valid:
        write = (sample_files.valid_rows, sample_files.valid_pictures)[rng.integers(2)]
    else:
        write = sample_files.ODD_FILES[rng.integers(len(sample_files.ODD_FILES))]
    model = folder / "model.onnx"
    shutil.copy(SMALL, model)
    data = write(folder, rng)
    pixels = ["--mean", "0.5", "--std", "0.25", "--resize", "8", "--crop", "8"]
    if rng.random() < 0.3 and not valid:
        arguments = ["evaluate", str(model), "--data", str(data), *pixels]
        return Prepared(f"evaluate {write.__name__}", arguments)
    arguments, out = _command(model, data, folder)
    return Prepared(write.__name__, [*arguments, *QUICK, *pixels], None, valid, out)


def _recipe(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    fields = settings.valid_recipe(rng)
    damage = not valid and bool(rng.random() < 0.3)
    if not valid and not damage:
        fields = settings.mutate_table(fields, rng)
    path = folder / "recipe.toml"
    path.write_bytes(settings.as_toml(fields, rng, damage))
    arguments = ["compress", str(SMALL), "--dry-run", "--recipe", str(path)]
    return Prepared("damaged" if damage else "fields", arguments, None, valid)


def _preprocess(rng: np.random.Generator, valid: bool, folder: Path, compressed: Path) -> Prepared:
    kind = str(rng.choice(["toml", "processor", "metadata"]))
    fields = settings.OF_A_PROCESSOR if kind == "processor" else settings.SMALL_IMAGES
    damage = not valid and bool(rng.random() < 0.3)
    if not valid and not damage:
        fields = settings.mutate_table(fields, rng)
    model = folder / "model.onnx"
    proto = onnx.load(SMALL)
    del proto.metadata_props[:]
    if kind == "metadata":
        text = settings.as_json(fields, rng, damage).decode(errors="replace")
        proto.metadata_props.add(key="onnxq.preprocess", value=text)
    elif kind == "processor":
        path = folder / "preprocessor_config.json"
        path.write_bytes(settings.as_json(fields, rng, damage))
    else:
        (folder / "preprocess.toml").write_bytes(settings.as_toml(fields, rng, damage))
    onnx.save(proto, model)
    arguments, out = _command(model, sample_files.valid_pictures(folder, rng), folder)
    return Prepared(kind, [*arguments, *QUICK], None, valid, out)


def _model(
    rng: np.random.Generator, valid: bool, folder: Path, compressed: Path
) -> tuple[Path, Valid | None, str]:
    """A model file, what is valid in it, and its kind."""
    path = folder / "model.onnx"
    if valid or rng.random() < 0.8:
        made: Valid | None = valid_model(rng)
        assert made is not None
        proto, kind = made.proto, made.kind
    else:
        made, kind = None, "written by onnxq"
        proto = onnx.load(compressed)
    if valid:
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path, made, f"valid {kind}"
    how = str(rng.choice(["fields", "graph", "bytes"], p=[0.4, 0.4, 0.2]))
    if how == "bytes":
        data, done = mutate_bytes(proto.SerializeToString(deterministic=True), rng)
    else:
        done = mutate_fields(proto, rng) if how == "fields" else mutate_graph(proto, rng)
        data = proto.SerializeToString(deterministic=True)
    path.write_bytes(data)
    (folder / "weights.bin").write_bytes(bytes(64))
    return path, made, f"{kind}: {done}"


def _data(made: Valid, folder: Path) -> Path:
    path = folder / "data.npz"
    save_arrays(path, made.samples)
    return path


def _command(model: Path, data: Path, folder: Path) -> tuple[list[str], Path]:
    out = folder / "out.onnx"
    return ["compress", str(model), "--data", str(data), "-o", str(out)], out


def _options(rng: np.random.Generator, odds: float) -> list[str]:
    return list(OPTIONS[rng.integers(len(OPTIONS))]) if rng.random() < odds else []


Make = Callable[[np.random.Generator, bool, Path, Path], Prepared]

FAMILIES: dict[str, tuple[Make, int]] = {
    "inspect": (_inspect, 7050),
    "compress": (_compress, 1550),
    "learn": (_learn, 350),
    "samples": (_samples, 400),
    "recipe": (_recipe, 350),
    "preprocess": (_preprocess, 300),
}
"""Of each family how its cases are made, and how many of 10,000 they are."""
