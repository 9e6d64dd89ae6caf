"""Images of every type: scaled by what they are, or refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import notes_on_sameness, open_samples
from onnxq.errors import DataError
from onnxq.runtime.dataset import Samples

PLAIN = Preprocess((0.0,), (1.0,))
GREY = [InputSpec("input", np.dtype(np.float32), (None, 1, 8, 8))]
RGB = [InputSpec("input", np.dtype(np.float32), (None, 3, 8, 8))]
RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
"""What every image below shows, from black to white."""


def read(path: Path, inputs: list[InputSpec] = GREY, preprocess: Preprocess = PLAIN) -> np.ndarray:
    """The inputs of all images, in 0 to 1."""
    return np.concatenate([b["input"] for b in open_samples(path, inputs, preprocess).batches(4)])


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def save_png16(array: np.ndarray, path: Path) -> Path:
    """A PNG of 16 bits with 2, 3 or 4 channels, which Pillow can't write."""
    height, width, channels = array.shape
    colour = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def deep(bits: int) -> np.ndarray:
    return np.round(RAMP * (2**bits - 1)).astype(np.uint16)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("inputs", [GREY, RGB])
def test_grey_of_16_bits_keeps_its_depth(tmp_path, suffix, inputs):
    save(deep(16), tmp_path / f"a{suffix}")
    for channel in read(tmp_path, inputs)[0]:
        np.testing.assert_allclose(channel, RAMP, atol=1e-5)


def test_floats_are_read_as_they_are(tmp_path):
    save(RAMP, tmp_path / "a.tif")
    np.testing.assert_allclose(read(tmp_path)[0, 0], RAMP, atol=1e-6)
    small = Preprocess((0.5,), (0.25,), resize=4, crop=3, resample="bicubic")
    found = read(tmp_path, [InputSpec("input", np.dtype(np.float32), (None, 1, 3, 3))], small)
    grey8 = Image.fromarray(np.round(RAMP * 255).astype(np.uint8))
    np.testing.assert_allclose(found[0], small.apply(grey8), atol=0.02)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_read_in_8(tmp_path, channels):
    array = np.repeat(deep(16)[:, :, None], channels, axis=2)
    save_png16(array, tmp_path / "a.png")
    np.testing.assert_allclose(read(tmp_path, RGB)[0, 1], RAMP, atol=1 / 255)


def test_pgm_of_any_depth_is_scaled_by_its_header(tmp_path):
    data = deep(12).astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + data)
    np.testing.assert_allclose(read(tmp_path)[0, 0], RAMP, atol=1e-3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(64, dtype=np.int32).reshape(8, 8), "holds 32-bit integers, and nothing says"),
        (RAMP * 255, "holds floats from 0 to 255; expected 0 to 1"),
        (RAMP - 0.5, "holds floats from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, np.float32), "holds NaN"),
        (deep(12), "hold no value above 4,095 of 65,535"),
        (deep(14), "hold no value above 16,383"),
        (deep(8), "hold no value above 255"),
    ],
)
def test_what_nothing_scales_is_refused_by_name(tmp_path, array, message):
    save(array, tmp_path / "bad.tif")
    with pytest.raises(DataError, match=rf"bad\.tif' .*{message}"):
        read(tmp_path)


def test_twelve_bits_in_colours_of_16_are_refused_too(tmp_path):
    save_png16(np.repeat(deep(12)[:, :, None], 3, axis=2), tmp_path / "bad.png")
    with pytest.raises(DataError, match=r"bad\.png' have 16 bits and hold no value above"):
        read(tmp_path, RGB)


def test_one_bright_image_says_that_dark_ones_have_16_bits(tmp_path):
    save(deep(12), tmp_path / "dark.png")
    save(deep(16), tmp_path / "light.png")
    assert read(tmp_path)[0].max() == pytest.approx(1 / 16, abs=1e-3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_8_bits(tmp_path, mode):
    image = Image.fromarray(np.round(RAMP * 255).astype(np.uint8))
    image = image.convert(mode) if mode == "LA" else image.convert("RGB").convert(mode)
    image.save(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"))
    rough = {"1": 1, "P": 0.2}.get(mode, 0.02)
    assert abs(read(tmp_path, RGB)[0] - RAMP).max() < rough


def test_transparent_palettes_keep_their_colours(tmp_path):
    image = Image.fromarray(np.full((8, 8, 3), (255, 0, 0), np.uint8)).convert("P")
    image.save(tmp_path / "a.png", transparency=0)
    assert read(tmp_path, RGB)[0, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_images_are_turned_as_exif_says(tmp_path, suffix, orientation):
    upright = np.zeros((16, 8), np.uint8)
    upright[:4, :4] = 255
    # What each orientation does to the stored image, undone.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {".tif": {"compression": "tiff_lzw"}, ".jpg": {"quality": 100}}.get(suffix, {})
    save(np.ascontiguousarray(stored), tmp_path / f"a{suffix}", exif=exif, **more)
    tall = [InputSpec("input", np.dtype(np.float32), (None, 1, 16, 8))]
    np.testing.assert_allclose(read(tmp_path, tall)[0, 0], upright / 255, atol=0.15)


def test_a_turned_tiff_that_would_be_garbled_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(np.zeros((8, 16), np.uint8), tmp_path / "a.tif", exif=exif)
    with pytest.raises(DataError, match=r"a\.tif' is an uncompressed TIFF"):
        read(tmp_path, [InputSpec("input", np.dtype(np.float32), (None, 1, 16, 8))])


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp"])
def test_of_several_pages_the_first_is_used_and_that_is_said(tmp_path, suffix):
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (255, 0, 9)]
    pages[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=pages[1:])
    samples = open_samples(tmp_path, GREY, PLAIN)
    assert next(samples.batches(1))["input"].min() == pytest.approx(1, abs=0.02)
    assert [note for note in samples.notes if "the first alone is used" in note and "3" in note]


@pytest.mark.parametrize(
    "images", [deep(16), RAMP, RAMP.astype(np.float64), np.round(RAMP * 255).astype(np.uint8)]
)
def test_arrays_of_images_are_scaled_by_their_type(tmp_path, images):
    np.savez(tmp_path / "x.npz", images=images[None])
    np.testing.assert_allclose(read(tmp_path / "x.npz", RGB)[0, 2], RAMP, atol=1 / 255)
    colours = np.repeat(images[None, :, :, None], 4, axis=3)
    np.savez(tmp_path / "y.npz", images=colours)
    np.testing.assert_allclose(read(tmp_path / "y.npz")[0, 0], RAMP, atol=2 / 255)


@pytest.mark.parametrize(
    ("images", "message"),
    [(deep(12), "hold no value above 4,095"), (RAMP * 2, "floats from 0 to 2"),
     (RAMP.astype(np.complex64), "is complex64")],
)  # fmt: skip
def test_arrays_of_images_that_nothing_scales_are_refused(tmp_path, images, message):
    np.savez(tmp_path / "x.npz", images=images[None])
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.npz")


def rows(array: np.ndarray, shape: tuple[int | None, ...], folder: Path) -> Samples:
    np.savez(folder / "x.npz", input=array)
    return open_samples(folder / "x.npz", [InputSpec("input", np.dtype(np.float32), shape)], None)


@pytest.mark.parametrize("batch", [None, 4])
def test_samples_that_are_all_the_same_are_noted(tmp_path, batch):
    same = np.repeat(RAMP[None, None], 8, axis=0)
    (note,) = notes_on_sameness(rows(same, (batch, 1, 8, 8), tmp_path))
    assert "the first 8 samples are all the same" in note
    flat = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None], (8, 3, 8, 8))
    (note,) = notes_on_sameness(rows(flat, (batch, 3, 8, 8), tmp_path))
    assert "each sample is one value throughout" in note
    same[7] += 1
    assert notes_on_sameness(rows(same, (batch, 1, 8, 8), tmp_path)) == []
    assert notes_on_sameness(rows(same[:1], (None, 1, 8, 8), tmp_path)) == []
