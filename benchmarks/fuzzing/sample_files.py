"""Files of samples: such as fit a model that takes `input` (N, 1, 8, 8), and such as don't."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import numpy_helper
from PIL import Image

from fuzzing.byte_mutations import mutate_bytes
from fuzzing.valid import save_arrays

Writer = Callable[[Path, np.random.Generator], Path]

PICTURES = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm")
MODES = ("L", "RGB", "RGBA", "P", "1", "I;16", "F", "I", "LA", "CMYK")
KINDS = (
    np.float32,
    np.float64,
    np.uint8,
    np.int32,
    np.bool_,
    np.complex64,
    np.float16,
    object,
    "U4",
)
SHAPES = (
    (6, 1, 8, 8), (1, 8, 8), (8, 8), (), (0, 1, 8, 8), (6, 3, 8, 8), (6, 1, 8), (6, 8, 8, 1),
    (64,), (6, 64), (1, 6, 1, 8, 8), (6, 1, 0, 8),
)  # fmt: skip
NAMES = ("input", "images", "", "arr_0", "labels", "x/y", "\x1b[1m", "input.npy", "../input")


def valid_rows(folder: Path, rng: np.random.Generator) -> Path:
    """An `.npz` that fits."""
    path = folder / "data.npz"
    save_arrays(path, {"input": rng.normal(0, 1, (6, 1, 8, 8)).astype(np.float32)})
    return path


def odd_rows(folder: Path, rng: np.random.Generator) -> Path:
    """An `.npz` whose arrays have other names, types, shapes or values."""
    path = folder / "data.npz"
    names = ["input", *rng.choice(NAMES, int(rng.integers(0, 3)))][int(rng.integers(2)) :]
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, _odd_array(rng), allow_pickle=True)
    return path


def odd_file(folder: Path, rng: np.random.Generator) -> Path:
    """A lone `.npy` or `.pb` that is odd, damaged, or claims to be huge."""
    array = _odd_array(rng)
    if rng.random() < 0.5 and array.dtype.kind in "fiub":
        array = array.astype(array.dtype.newbyteorder("="))
        path, data = folder / "data.pb", numpy_helper.from_array(array, "input").SerializeToString()
    else:
        file = io.BytesIO()
        np.lib.format.write_array(file, array, allow_pickle=True)
        path, data = folder / "data.npy", file.getvalue()
        if rng.random() < 0.3:
            data = data.replace(b"(6,", b"(%d," % int(rng.choice([10**9, 10**15, 10**30])))
    path.write_bytes(mutate_bytes(data, rng)[0] if rng.random() < 0.6 else data)
    return path


def damaged_archive(folder: Path, rng: np.random.Generator) -> Path:
    """An `.npz` with damaged bytes, a password, an odd compression, or another archive inside."""
    path = valid_rows(folder, rng)
    data = path.read_bytes()
    how = int(rng.integers(5))
    if how == 0:
        # The flag of encryption, in both headers.
        data = bytearray(data)
        data[6] |= 1
        data[data.rindex(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
    elif how == 1:
        data = bytearray(data)
        method = int(rng.choice([1, 6, 9, 12, 14, 93, 99]))
        data[8] = data[data.rindex(b"PK\x01\x02") + 10] = method
        path.write_bytes(data)
    elif how == 2:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("input.npy", data)
            file.writestr("inner.npz", data)
    else:
        path.write_bytes(mutate_bytes(data, rng)[0])
    return path


def picture_folder(folder: Path, rng: np.random.Generator) -> Path:
    """A folder of pictures of all kinds, some of which may be damaged."""
    place = folder / "pictures"
    place.mkdir()
    damage = float(rng.choice([0, 0.3, 1]))
    for index in range(int(rng.integers(1, 6))):
        suffix = str(rng.choice(PICTURES))
        data = _picture(suffix, rng)
        if rng.random() < damage:
            data = mutate_bytes(data, rng)[0]
        (place / f"{index}.{suffix}").write_bytes(data)
    return place


def odd_folder(folder: Path, rng: np.random.Generator) -> Path:
    """A folder that is empty, mixed, deep, or has odd names and links in it."""
    place = folder / "data"
    (place / "deep" / "er").mkdir(parents=True)
    for _ in range(int(rng.integers(0, 4))):
        kind = int(rng.integers(6))
        if kind == 0:
            (place / "deep" / "loop").unlink(missing_ok=True)
            (place / "deep" / "loop").symlink_to(place)
        elif kind == 1:
            odd_rows(place, rng)
        elif kind == 2:
            odd_file(place / "deep", rng)
        elif kind == 3:
            (place / "gone.png").unlink(missing_ok=True)
            (place / "gone.png").symlink_to(place / "nowhere.png")
        elif kind == 4:
            (place / "a\x1b[31m\nb.png").write_bytes(_picture("png", rng))
        else:
            (place / "notes.txt").write_text("no samples")
    return place


def valid_pictures(folder: Path, rng: np.random.Generator) -> Path:
    """A folder of grey pictures of 8 by 8 pixels or more."""
    place = folder / "pictures"
    place.mkdir()
    for index in range(4):
        side = int(rng.choice([8, 8, 12]))
        pixels = rng.integers(0, 256, (side, side)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return place


ODD_FILES: tuple[Writer, ...] = (odd_rows, odd_file, damaged_archive, picture_folder, odd_folder)


def _odd_array(rng: np.random.Generator) -> np.ndarray:
    shape = SHAPES[rng.integers(len(SHAPES))] if rng.random() < 0.5 else SHAPES[0]
    kind = KINDS[rng.integers(len(KINDS))] if rng.random() < 0.5 else np.float32
    values = np.asarray(rng.normal(0, 1, shape))
    array = np.asarray(values.astype(kind))
    if array.dtype.kind in "fc" and array.size and rng.random() < 0.3:
        array.flat[rng.integers(array.size)] = rng.choice([np.nan, np.inf, 1e30, -3e38])
    if rng.random() < 0.1:
        array = array.astype(array.dtype.newbyteorder(">"))
    return array


def _picture(suffix: str, rng: np.random.Generator) -> bytes:
    """One picture in a mode that its format takes."""
    pixels = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    file = io.BytesIO()
    mode = str(rng.choice(MODES))
    try:
        Image.fromarray(pixels).convert("L" if mode in ("I;16", "LA", "P") else "RGB").convert(
            mode
        ).save(file, suffix)
    except (OSError, ValueError, KeyError):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()
