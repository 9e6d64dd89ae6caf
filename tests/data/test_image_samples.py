from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data.arrays import InputSpec
from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import open_samples
from onnxq.errors import DataError

FLOAT = np.dtype(np.float32)
INPUTS = [InputSpec("input", FLOAT, (None, 3, 8, 8))]
PLAIN = Preprocess((0.0,), (1 / 255,))


def write_images(folder: Path, count: int, suffix: str = ".png", size: int = 8) -> list[Path]:
    """Images whose pixels all are their own number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:03d}{suffix}")
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(paths[-1])
    return paths


def values(samples, size: int = 4) -> list[int]:
    """The number of every image, in order."""
    return [round(float(v)) for b in samples.batches(size) for v in b["input"][:, 0, 0, 0]]


def test_streams_in_sorted_order_with_a_short_last_batch(tmp_path):
    write_images(tmp_path / "b", 3)
    write_images(tmp_path / "a" / "deep", 7)
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    assert [b["input"].shape for b in samples.batches(4)] == [
        (4, 3, 8, 8),
        (4, 3, 8, 8),
        (2, 3, 8, 8),
    ]
    assert values(samples) == values(samples) == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert next(samples.batches(1))["input"].dtype == FLOAT


@pytest.mark.parametrize(
    "suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp", ".tiff", ".gif", ".ppm"]
)
def test_reads_every_format(tmp_path, suffix):
    write_images(tmp_path, 2, suffix)
    (tmp_path / "notes.txt").write_text("ignored")
    (tmp_path / ".hidden.png").write_text("ignored")
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    assert (len(samples), samples.skipped) == (2, [])
    assert values(samples) == pytest.approx([0, 1], abs=2)  # lossy formats


def test_reads_pgm_and_a_single_file(tmp_path):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "x.pgm")
    grey = [InputSpec("input", FLOAT, (None, 1, 8, 8))]
    assert values(open_samples(tmp_path / "x.pgm", grey, PLAIN)) == [7]
    assert values(open_samples(tmp_path, INPUTS, PLAIN)) == [7]


def test_skips_and_counts_broken_images(tmp_path):
    paths = write_images(tmp_path, 6, ".png")
    paths[1].write_bytes(b"not an image")
    paths[3].write_bytes(paths[3].read_bytes()[:-30])
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    assert samples.skipped == [str(paths[1]), str(paths[3])]
    assert values(samples) == [0, 2, 4, 5]


def test_truncated_jpeg_is_found_when_opened(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    samples = open_samples(tmp_path, [InputSpec("input", FLOAT, (None, 3, 64, 64))], PLAIN)
    assert samples.skipped == [str(tmp_path / "a.jpg")]


def test_broken_images_are_replaced_where_there_are_more_than_the_limit(tmp_path):
    paths = write_images(tmp_path, 20)
    for path in paths[::2]:
        path.write_bytes(b"")
    samples = open_samples(tmp_path, INPUTS, PLAIN, limit=10)
    assert values(samples) == list(range(1, 20, 2))


def test_image_of_a_kind_that_has_no_pixels_is_skipped(tmp_path):
    write_images(tmp_path, 2)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "depth.tiff")
    Image.new("LAB", (8, 8)).save(tmp_path / "lab.tiff")
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    assert values(samples)[:2] == [0, 1]
    assert len(samples) + len(samples.skipped) == 4


def test_all_broken_names_the_first(tmp_path):
    for path in write_images(tmp_path, 3):
        path.write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"None of the 3 images .*'.*000\.png', is broken \(.*give a folder"
    ):
        open_samples(tmp_path, INPUTS, PLAIN)


def test_limit_is_spread_over_the_folder_and_seeded(tmp_path):
    write_images(tmp_path, 40)
    once, again, other = (values(open_samples(tmp_path, INPUTS, PLAIN, 8, s)) for s in (0, 0, 1))
    assert once == again != other
    assert [v // 5 for v in once] == list(range(8))


def test_size_that_does_not_fit_names_the_flags(tmp_path):
    write_images(tmp_path, 2, size=9)
    with pytest.raises(DataError, match=r"000\.png' is 9×9 .* takes 8×8: give --resize and --crop"):
        open_samples(tmp_path, INPUTS, PLAIN)
    resized = Preprocess((0.0,), (1 / 255,), resize=8)
    assert values(open_samples(tmp_path, INPUTS, resized)) == [0, 1]


def test_crop_larger_than_the_image_is_an_error(tmp_path):
    write_images(tmp_path, 1, size=6)
    free = [InputSpec("input", FLOAT, (None, 3, None, None))]
    with pytest.raises(DataError, match=r"6×6 .* takes 8×8"):
        open_samples(tmp_path, free, Preprocess((0.0,), (1.0,), crop=8))


def test_images_of_several_sizes_need_a_size_unless_fed_one_by_one(tmp_path):
    write_images(tmp_path / "a", 1, size=6)
    write_images(tmp_path / "b", 1, size=7)
    with pytest.raises(DataError, match=r"is 6×6 and '.*' is 7×7.*--resize and --crop"):
        open_samples(tmp_path, [InputSpec("input", FLOAT, (None, 3, None, None))], PLAIN)
    single = open_samples(tmp_path, [InputSpec("input", FLOAT, (1, 3, None, None))], PLAIN)
    assert [b["input"].shape[2] for b in single.batches(32)] == [6, 7]


@pytest.mark.parametrize(("batch", "count"), [(1, 7), (3, 2)])
def test_a_fixed_batch_is_kept_whatever_was_asked(tmp_path, batch, count):
    write_images(tmp_path, 7)
    samples = open_samples(tmp_path, [InputSpec("input", FLOAT, (batch, 3, 8, 8))], PLAIN)
    shapes = [b["input"].shape for b in samples.batches(32)]
    assert shapes == [(batch, 3, 8, 8)] * count
    with pytest.raises(DataError, match="holds 7 samples; the model takes batches of 9"):
        open_samples(tmp_path, [InputSpec("input", FLOAT, (9, 3, 8, 8))], PLAIN)


@pytest.mark.parametrize(
    ("spec", "preprocess", "message"),
    [
        (((None, 3, 8, 8), FLOAT), None, r"--mean and --std \(or --preprocess"),
        (((None, 13), FLOAT), PLAIN, r"the model takes 'input' float32 \(N, 13\).*\.npz"),
        (((None, 3, 8, 8), np.dtype(np.int64)), PLAIN, "expected one float input"),
        (((None, 8, 8, 3), FLOAT), PLAIN, "--layout nhwc"),
        (((None, 4, 8, 8), FLOAT), PLAIN, "with 4 channels .* expected 1 or 3"),
        (((None, 1, 8, 8), FLOAT), Preprocess((0.0,) * 3, (1.0,) * 3), "3 values .* 1 channel"),
    ],
)
def test_inputs_that_images_do_not_fit(tmp_path, spec, preprocess, message):
    write_images(tmp_path, 1)
    shape, dtype = spec
    with pytest.raises(DataError, match=message):
        open_samples(tmp_path, [InputSpec("input", dtype, shape)], preprocess)


def test_images_do_not_feed_two_inputs(tmp_path):
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match=r"'input' .* 'size' float32 \(N, 2\)"):
        open_samples(tmp_path, [*INPUTS, InputSpec("size", FLOAT, (None, 2))], PLAIN)


def test_array_of_images_equals_the_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "png" / f"{i}.png")
    np.savez_compressed(tmp_path / "x.npz", images=pixels)
    np.save(tmp_path / "x.npy", pixels)
    settings = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), bgr=True)
    found = [
        np.concatenate([b["input"] for b in open_samples(p, INPUTS, settings).batches(2)])
        for p in (tmp_path / "png", tmp_path / "x.npz", tmp_path / "x.npy")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_labels_beside_images_are_ignored(tmp_path):
    images = np.full((3, 8, 8, 3), 5, np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.zeros(3, np.int64))
    assert values(open_samples(tmp_path / "x.npz", INPUTS, PLAIN)) == [5, 5, 5]


def test_array_of_images_is_resized_and_made_grey(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.full((3, 16, 16, 3), 9, np.uint8))
    grey = [InputSpec("input", FLOAT, (None, 1, 8, 8))]
    samples = open_samples(tmp_path / "x.npz", grey, Preprocess((0.0,), (1 / 255,), resize=8))
    assert [b["input"].shape for b in samples.batches(2)] == [(2, 1, 8, 8), (1, 1, 8, 8)]
    assert values(samples) == [9, 9, 9]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 5), np.uint8), r"'images' .* uint8 \(2, 8, 8, 5\); expected uint8"),
        (np.zeros((2, 8, 8, 3), np.int64), r"'images' .* int64"),
        (np.zeros((0, 8, 8, 3), np.uint8), "is empty"),
        (np.zeros((2, 9, 9, 3), np.uint8), "--resize and --crop"),
    ],
)
def test_bad_arrays_of_images(tmp_path, images, message):
    np.savez(tmp_path / "x.npz", images=images)
    with pytest.raises(DataError, match=message):
        open_samples(tmp_path / "x.npz", INPUTS, PLAIN)


def test_array_of_images_needs_preprocessing(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="--mean and --std"):
        open_samples(tmp_path / "x.npz", INPUTS, None)


def test_file_that_vanishes_is_named(tmp_path):
    paths = write_images(tmp_path, 4)
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"002\.png' can no longer be read"):
        values(samples)


def test_images_are_decoded_once_as_far_as_memory_allows(tmp_path, monkeypatch):
    paths = write_images(tmp_path, 6)
    monkeypatch.setattr("onnxq.data.images.KEPT_BYTES", 4 * 8 * 8 * 3)
    samples = open_samples(tmp_path, INPUTS, PLAIN)
    assert values(samples.subset([4, 1])) == [4, 1]
    assert values(samples, 6) == values(samples, 1) == [0, 1, 2, 3, 4, 5]
    decoded: list[str] = []
    apply = Preprocess.pixels

    def count(self, image, path):
        decoded.append(path.name)
        return apply(self, image, path)

    monkeypatch.setattr(Preprocess, "pixels", count)
    assert values(samples) == [0, 1, 2, 3, 4, 5]
    assert len(decoded) == 2 and not {"001.png", "004.png"} & set(decoded)
    for path in paths:
        path.unlink()
    assert values(samples.subset([1, 4, 1])) == [1, 4, 1]


def test_leaving_a_stream_early_stops_its_threads(tmp_path):
    write_images(tmp_path, 30)
    stream = open_samples(tmp_path, INPUTS, PLAIN).batches(2)
    next(stream)
    before = threading.active_count()
    stream.close()
    assert threading.active_count() < before


def test_memory_grows_with_the_number_of_samples_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxq.data.images.KEPT_BYTES", 20 * 64 * 64 * 3)
    write_images(tmp_path, 200, size=64)
    inputs = [InputSpec("input", FLOAT, (None, 3, 64, 64))]
    peaks = []
    for limit in (50, 50, 200):  # the first run warms Pillow up
        tracemalloc.start()
        for batch in open_samples(tmp_path, inputs, PLAIN, limit).batches(8):
            assert batch["input"].shape == (min(8, len(batch["input"])), 3, 64, 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 150 more images would be 7 MB; their paths are a few kilobytes.
    assert peaks[2] - peaks[1] < 500_000
