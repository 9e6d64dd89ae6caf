"""Datasets: the same arrays by index with any batch size, in memory, on disk, mapped and joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import OutputError
from onnxq.runtime.dataset import Dataset, Joined, Mapped, Samples, Stored
from onnxq.runtime.session import Arrays


def numbered(count: int, batch: int | None) -> Samples:
    """Samples whose only number is their place."""

    def read(places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        return ({"x": rows[:, None].astype(np.float32)} for rows in places)

    return Samples(read, np.arange(count), batch)


def numbers(dataset: Dataset, size: int, indices: np.ndarray | None = None) -> list[list[float]]:
    return [batch["x"].reshape(-1).tolist() for batch in dataset.batches(size, indices)]


def every_kind(samples: Samples, folder: Path) -> dict[str, Dataset]:
    stored = Stored(folder, samples.batch, "numbers")
    stored.extend(samples, 3)
    doubled = Mapped(samples, lambda batches, _: ({"y": 2 * each["x"]} for each in batches))
    return {"samples": samples, "stored": stored, "joined": Joined(doubled, stored)}


@given(
    count=st.integers(4, 30),
    size=st.integers(1, 9),
    batch=st.none() | st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_every_dataset_gives_the_same_arrays_by_index(count, size, batch, data):
    samples, group = numbered(count, batch), batch or 1
    order = np.array(data.draw(st.permutations(range(len(samples)))))
    with TemporaryDirectory() as folder:
        for dataset in every_kind(samples, Path(folder)).values():
            assert (len(dataset), dataset.batch) == (count // group, batch)
            found = numbers(dataset, size, order)
            assert all(len(each) <= (batch or size) for each in found)
            whole = [float(index * group + i) for index in order for i in range(group)]
            assert [number for each in found for number in each] == whole
            straight = [number for each in numbers(dataset, size) for number in each]
            assert straight == [float(i) for i in range(len(samples) * group)]


def test_a_batch_of_joined_datasets_has_the_arrays_of_all(tmp_path):
    joined = every_kind(numbered(7, None), tmp_path)["joined"]
    (batch,) = joined.batches(8, np.array([5, 0]))
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "x": [[5.0], [0.0]],
        "y": [[10.0], [0.0]],
    }


def test_a_function_is_told_the_indices_of_each_batch():
    seen: list[list[int]] = []

    def change(batches: Iterator[Arrays], indices: Iterator[np.ndarray]) -> Iterator[Arrays]:
        for each, chosen in zip(batches, indices, strict=True):
            seen.append(chosen.tolist())
            yield each

    mapped = Mapped(numbered(9, None), change)
    list(mapped.batches(2, np.array([8, 1, 4])))
    assert seen == [[8, 1], [4]]


def test_nothing_is_read_before_it_is_asked_for():
    read: list[int] = []

    def reader(places: Iterable[np.ndarray]) -> Iterator[Arrays]:
        for rows in places:
            read.extend(rows.tolist())
            yield {"x": rows}

    samples = Samples(reader, np.arange(100))
    mapped = Mapped(samples, lambda batches, _: ({"y": each["x"]} for each in batches))
    next(Joined(samples, mapped).batches(4))
    assert read == [0, 1, 2, 3] * 2


def test_samples_that_fill_no_batch_are_counted_and_left_out():
    samples = numbered(10, None).in_batches_of(4)
    assert (samples.count, len(samples)) == (10, 2)
    assert numbers(samples, 16) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert samples.in_batches_of(3).batch == 4


def test_without_room_it_is_said_whose_arrays_they_are(tmp_path):
    stored = Stored(tmp_path / "absent", None, "the numbers")
    with pytest.raises(OutputError, match="has no room for the numbers"):
        stored.append({"x": np.zeros((2, 3))}, 2)


@pytest.mark.parametrize("indices", [[0, 1, 2, 5, 6], [6, 5, 0, 0, 1], [3], []])
def test_stored_rows_come_back_in_any_order_and_are_not_mapped(tmp_path, indices):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2, 3)), rng.integers(0, 2, (14, 1)) > 0
    stored = Stored(tmp_path, None, "the numbers")
    for start, end in ((0, 4), (4, 7)):
        none = np.zeros((end - start, 0), np.float16)
        stored.append({"x": x[start:end], "y": y[2 * start : 2 * end], "none": none}, end - start)
    found = stored.at(np.array(indices, np.int64))
    np.testing.assert_array_equal(found["x"], x[indices])
    np.testing.assert_array_equal(found["y"], y.reshape(7, 2, 1)[indices].reshape(-1, 1))
    assert found["none"].shape == (len(indices), 0)
    assert [array.dtype for array in found.values()] == [x.dtype, y.dtype, np.float16]
    assert not any(isinstance(array.base, np.memmap) for array in found.values())
