from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data.arrays import InputSpec
from onnxq.data.labelled import open_labelled
from onnxq.data.preprocess import Preprocess
from onnxq.errors import DataError

INPUTS = [InputSpec("input", np.dtype(np.float32), (None, 1, 4, 4))]
PLAIN = Preprocess((0.0,), (1 / 255,))


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def pairs(path: Path) -> list[tuple[int, int]]:
    """The value of each image, with its label."""
    labelled = open_labelled(path, INPUTS, PLAIN)
    assert labelled.labels.dtype == np.int64
    found = np.concatenate([b["input"][:, 0, 0, 0] for b in labelled.samples.batches(2)])
    return [(round(float(v)), int(k)) for v, k in zip(found, labelled.labels, strict=True)]


def test_sorted_sub_folders_are_the_classes(tmp_path):
    for value, name in enumerate(["cat", "ant", "bee", "ant"]):
        write_image(tmp_path / name / f"{value}.png", value)
    assert pairs(tmp_path) == [(1, 0), (3, 0), (2, 1), (0, 2)]


def test_folders_named_by_numbers_are_sorted_as_numbers(tmp_path):
    for number in range(12):
        write_image(tmp_path / str(number) / "a.png", number)
    assert sorted(pairs(tmp_path)) == [(i, i) for i in range(12)]


def test_broken_images_lose_their_labels_too(tmp_path):
    for value in range(4):
        write_image(tmp_path / str(value) / "a.png", value)
    (tmp_path / "1" / "a.png").write_bytes(b"broken")
    assert pairs(tmp_path) == [(0, 0), (2, 2), (3, 3)]
    assert len(open_labelled(tmp_path, INPUTS, PLAIN).samples.skipped) == 1


def test_broken_arrays_lose_their_labels_too(tmp_path):
    for value in range(4):
        (tmp_path / str(value)).mkdir()
        np.save(tmp_path / str(value) / "a.npy", np.full((1, 4, 4), value, np.float32))
    (tmp_path / "1" / "a.npy").write_bytes(b"broken")
    found = open_labelled(tmp_path, INPUTS, None)
    assert found.labels.tolist() == [0, 2, 3]
    batch = next(found.samples.batches(3))[INPUTS[0].name]
    assert batch[:, 0, 0, 0].tolist() == [0, 2, 3]


@pytest.mark.parametrize("heading", ["file,label\n", "", "\ufefffile,label\n"])
def test_listing(tmp_path, heading):
    for value in range(3):
        write_image(tmp_path / "deep" / f"{value}.png", value)
    listing = heading + "deep/2.png,7\ndeep/0.png, 900\n\n"
    (tmp_path / "labels.csv").write_text(listing, encoding="utf-8")
    assert pairs(tmp_path) == [(2, 7), (0, 900)]


def test_npz_of_images_and_of_arrays(tmp_path):
    labels = np.array([[3], [1]], np.uint8)
    images = np.stack([np.full((4, 4, 1), v, np.uint8) for v in (5, 6)])
    np.savez(tmp_path / "i.npz", images=images, labels=labels)
    np.savez(
        tmp_path / "x.npz", input=images.transpose(0, 3, 1, 2).astype(np.float32), labels=labels
    )
    assert pairs(tmp_path / "i.npz") == pairs(tmp_path / "x.npz") == [(5, 3), (6, 1)]


def test_folder_of_arrays(tmp_path):
    for value in range(3):
        np.save(tmp_path / f"{value}.npy", np.full((1, 4, 4), value, np.float32))
    (tmp_path / "labels.csv").write_text("1.npy,4\n0.npy,5\n")
    assert pairs(tmp_path) == [(1, 4), (0, 5)]


def test_take_keeps_labels_beside_their_samples(tmp_path):
    for value in range(20):
        write_image(tmp_path / f"{value}" / "a.png", value)
    taken = open_labelled(tmp_path, INPUTS, PLAIN).take(5)
    found = np.concatenate([b["input"][:, 0, 0, 0] for b in taken.samples.batches(2)])
    assert len(taken.labels) == 5
    np.testing.assert_allclose(found, taken.labels, atol=1e-4)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("file,label\n", "lists no file"),
        ("a.png,cat\n", "line 1 is 'a.png,cat'; expected 'file,label' with an integer"),
        ("file,label\na.png\n", "line 2 is 'a.png'"),
        ("gone.png,1\n", "line 1 names 'gone.png', which is not in"),
    ],
)
def test_bad_listings(tmp_path, listing, message):
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "labels.csv").write_text(listing)
    with pytest.raises(DataError, match=message):
        open_labelled(tmp_path, INPUTS, PLAIN)


def test_listing_that_is_not_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"Can't read the labels in '.*labels\.csv'"):
        open_labelled(tmp_path, INPUTS, PLAIN)


def test_data_without_labels(tmp_path):
    write_image(tmp_path / "a.png", 1)
    with pytest.raises(DataError, match="has no labels; expected a sub-folder per class"):
        open_labelled(tmp_path, INPUTS, PLAIN)
    with pytest.raises(DataError, match="is not labelled data"):
        open_labelled(tmp_path / "a.png", INPUTS, PLAIN)
    images = np.zeros((2, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(DataError, match="no array 'labels': found 'images'"):
        open_labelled(tmp_path / "a.npz", INPUTS, PLAIN)
    np.savez(tmp_path / "b.npz", images=images, labels=np.zeros(3, np.int64))
    with pytest.raises(DataError, match="2 samples and 3 labels"):
        open_labelled(tmp_path / "b.npz", INPUTS, PLAIN)
    np.savez(tmp_path / "c.npz", images=images, labels=np.zeros(2))
    with pytest.raises(DataError, match=r"'labels' in .* is float64"):
        open_labelled(tmp_path / "c.npz", INPUTS, PLAIN)
