from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.data.arrays import InputSpec
from onnxq.data.samples import open_samples
from onnxq.errors import DataError

FLOAT = np.dtype(np.float32)
INT = np.dtype(np.int64)
ONE = [InputSpec("x", FLOAT, (None, 3))]
TWO = [*ONE, InputSpec("ids", INT, (None, 2, 2))]
STATEFUL = [
    InputSpec("x", FLOAT, (None, None)),
    InputSpec("state", FLOAT, (2, None, 4)),
    InputSpec("rate", INT, ()),
]


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def gather(samples, size: int, name: str = "x") -> np.ndarray:
    return np.concatenate([b[name] for b in samples.batches(size)])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_by_input_name(tmp_path, save):
    ids = np.arange(28).reshape(7, 2, 2)
    save(tmp_path / "d.npz", x=rows(7), ids=ids, labels=np.zeros(7))
    samples = open_samples(tmp_path / "d.npz", TWO, None)
    assert [len(b["x"]) for b in samples.batches(3)] == [3, 3, 1]
    assert set(next(samples.batches(3))) == {"x", "ids"}
    np.testing.assert_array_equal(gather(samples, 3, "ids"), ids)


def test_one_array_without_a_name_is_that_of_the_only_input(tmp_path):
    np.savez(tmp_path / "d.npz", rows(5))
    np.save(tmp_path / "d.npy", rows(5))
    for name in ("d.npz", "d.npy"):
        np.testing.assert_array_equal(gather(open_samples(tmp_path / name, ONE, None), 2), rows(5))


def test_one_array_of_another_name_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", other=rows(5))
    with pytest.raises(
        DataError, match=r"no array for .*'x': found 'other', expected arrays named 'x': rename"
    ):
        open_samples(tmp_path / "d.npz", ONE, None)


def test_array_without_the_batch_dimension_is_one_sample(tmp_path):
    np.save(tmp_path / "d.npy", rows(1)[0])
    assert gather(open_samples(tmp_path / "d.npy", ONE, None), 2).shape == (1, 3)


def test_a_model_of_fixed_batch_gets_its_batch(tmp_path):
    np.save(tmp_path / "d.npy", rows(7))
    for batch, count in ((1, 7), (3, 2)):
        samples = open_samples(tmp_path / "d.npy", [InputSpec("x", FLOAT, (batch, 3))], None)
        assert [b["x"].shape for b in samples.batches(64)] == [(batch, 3)] * count
    with pytest.raises(DataError, match="holds 7 samples; the model takes batches of 8"):
        open_samples(tmp_path / "d.npy", [InputSpec("x", FLOAT, (8, 3))], None)


def test_limit_takes_rows_spread_over_the_file(tmp_path):
    np.save(tmp_path / "d.npy", rows(100))
    found = gather(open_samples(tmp_path / "d.npy", ONE, None, limit=10), 4)[:, 0] // 30
    np.testing.assert_array_equal(found, np.arange(10))


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_folder_of_single_samples_shares_batches(tmp_path, shape):
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", rows(1, i).reshape(shape))
    samples = open_samples(tmp_path, ONE, None)
    assert [len(b["x"]) for b in samples.batches(2)] == [2, 2, 1]
    np.testing.assert_array_equal(gather(samples, 2)[:, 0], np.arange(5))
    np.testing.assert_array_equal(gather(samples.subset([3, 0]), 2)[:, 0], [3, 0])


def test_folder_of_shards_is_read_by_rows_across_files(tmp_path):
    for i, count in enumerate((4, 4, 2)):
        np.savez(tmp_path / f"{i}.npz", x=rows(count, 12 * i))
    samples = open_samples(tmp_path, ONE, None)
    assert len(samples) == 10
    np.testing.assert_array_equal(gather(samples, 3), rows(10))
    np.testing.assert_array_equal(gather(samples.subset([9, 0, 5]), 3), rows(10)[[9, 0, 5]])


def test_files_of_several_lengths_stay_whole(tmp_path):
    for i, count in enumerate((4, 7, 2)):
        np.savez(tmp_path / f"{i}.npz", x=rows(count))
    samples = open_samples(tmp_path, ONE, None)
    assert (len(samples), samples.batch) == (3, 1)
    assert [len(b["x"]) for b in samples.batches(32)] == [4, 7, 2]


def test_files_whose_free_dimensions_differ_stay_whole(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.ones((1, 5 + i), np.float32))
    samples = open_samples(tmp_path, [InputSpec("x", FLOAT, (None, None))], None)
    assert [b["x"].shape for b in samples.batches(32)] == [(1, 5), (1, 6), (1, 7)]


def feed(n: int = 1) -> dict[str, np.ndarray]:
    return {
        "x": np.full((n, 9), n, np.float32),
        "state": np.zeros((2, n, 4), np.float32),
        "rate": np.array(16000),
    }


def test_feeds_with_states_and_scalars_are_fed_as_they_are(tmp_path):
    for n in (1, 2):
        np.savez(tmp_path / f"{n}.npz", **feed(n))
    for path, count in ((tmp_path, 2), (tmp_path / "2.npz", 1)):
        samples = open_samples(path, STATEFUL, None)
        assert len(samples) == count
        last = list(samples.batches(16))[-1]
        assert {k: v.shape for k, v in last.items()} == {
            "x": (2, 9),
            "state": (2, 2, 4),
            "rate": (),
        }
        assert last["rate"].dtype == INT


def test_a_sequence_is_not_cut_into_samples(tmp_path):
    np.save(tmp_path / "d.npy", np.arange(50, dtype=np.float32))
    samples = open_samples(tmp_path / "d.npy", [InputSpec("x", FLOAT, (None,))], None)
    assert [b["x"].shape for b in samples.batches(4)] == [(50,)]


def write_tensor(path: Path, array: np.ndarray, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())


def test_zoo_test_data_sets(tmp_path):
    for i in range(3):
        folder = tmp_path / f"test_data_set_{i}"
        # Tensors are often named after something else: the number is the input's position.
        write_tensor(folder / "input_1.pb", np.full((1, 2, 2), i), "b")
        write_tensor(folder / "input_0.pb", rows(1, i), "a")
        write_tensor(folder / "output_0.pb", np.zeros(1), "y")
    (tmp_path / "model.onnx").write_bytes(b"ignored")
    samples = open_samples(tmp_path, TWO, None)
    np.testing.assert_array_equal(
        gather(samples, 2), np.concatenate([rows(1, i) for i in range(3)])
    )
    one = open_samples(tmp_path / "test_data_set_2", TWO, None)
    np.testing.assert_array_equal(gather(one, 1, "ids"), np.full((1, 2, 2), 2))


def test_lone_pb_files_are_samples_each(tmp_path):
    for i in range(3):
        write_tensor(tmp_path / f"sample{i}.pb", rows(1, i), "x")
    assert len(open_samples(tmp_path, ONE, None)) == 3
    assert len(open_samples(tmp_path / "sample1.pb", ONE, None)) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": rows(3), "z": rows(3)}, "no array for the model's input 'x': found 'y', 'z'"),
        ({"x": rows(3).astype(np.float64)}, r"float64 \(3, 3\); expected float32 \(N, 3\)"),
        ({"x": np.zeros((3, 3), np.uint8)}, "uint8 .*'images' to have it preprocessed"),
        ({"x": np.zeros((3, 4), np.float32)}, r"shape \(3, 4\); expected float32 \(N, 3\)"),
        ({"x": np.zeros((2, 3, 3), np.float32)}, r"shape \(2, 3, 3\)"),
        ({"x": np.zeros((0, 3), np.float32)}, "holds 0 samples"),
        ({"x": np.array([[1, np.nan, 2]], np.float32)}, "array 'x' in '.*' holds NaN"),
        ({"x": np.array([[1, np.inf, 2]], np.float32)}, "array 'x' in '.*' holds infinity"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "d.npz", **arrays)
    for path in ("d.npz", "folder"):
        with pytest.raises(DataError, match=message.replace("holds 0 samples", "0 samples|empty")):
            open_samples(tmp_path / path, ONE, None)


def test_missing_input_of_two_and_rows_that_differ(tmp_path):
    np.save(tmp_path / "d.npy", rows(3))
    with pytest.raises(DataError, match="expected arrays named 'x', 'ids'"):
        open_samples(tmp_path / "d.npy", TWO, None)


def test_whole_feed_that_does_not_fit(tmp_path):
    np.savez(tmp_path / "d.npz", **feed() | {"state": np.zeros((3, 1, 4), np.float32)})
    with pytest.raises(DataError, match=r"'state' .* \(3, 1, 4\); expected float32 \(2, \?, 4\)"):
        open_samples(tmp_path / "d.npz", STATEFUL, None)


@pytest.mark.parametrize("name", ["d.npz", "d.npy", "d.pb"])
@pytest.mark.parametrize("content", [b"", b"junk of some length", None])
def test_files_that_are_not_arrays(tmp_path, name, content):
    path = tmp_path / name
    if content is None:  # truncated
        write = {"d.npz": np.savez, "d.npy": np.save}.get(name)
        if write:
            write(path, rows(900))
        else:
            write_tensor(path, rows(900), "x")
        content = path.read_bytes()[:-200]
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"Can't read .*{name}"):
        open_samples(path, ONE, None)


def archive(path, patch):
    """An `.npz` of one array, whose bytes are patched in both headers of the member."""
    np.savez(path, x=rows(3))
    data = bytearray(path.read_bytes())
    local, central = 0, data.rindex(b"PK\x01\x02")
    for start, shift in ((local, 0), (central, 2)):
        patch(data, start + shift)
    path.write_bytes(data)


def encrypt(data, start):
    data[start + 6] |= 1


def compress_oddly(data, start):
    data[start + 8] = 99


@pytest.mark.parametrize("patch", [encrypt, compress_oddly])
def test_archives_that_can_not_be_read(tmp_path, patch):
    archive(tmp_path / "d.npz", patch)
    with pytest.raises(DataError, match=r"Can't read arrays from .*d\.npz"):
        open_samples(tmp_path / "d.npz", ONE, None)


def test_an_archive_with_something_else_in_it(tmp_path):
    np.savez(tmp_path / "d.npz", x=rows(3))
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as file:
        file.writestr("inner.zip", b"PK")
    with pytest.raises(DataError, match=r"'inner\.zip' in .* is no array"):
        open_samples(tmp_path / "d.npz", ONE, None)


def test_a_header_that_does_not_end(tmp_path):
    np.save(tmp_path / "d.npy", rows(3))
    data = (tmp_path / "d.npy").read_bytes().replace(b"}", b" ")
    (tmp_path / "d.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"Can't read arrays from .*d\.npy"):
        open_samples(tmp_path / "d.npy", ONE, None)


def test_python_objects_are_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without Python objects"):
        open_samples(tmp_path / "d.npy", ONE, None)


@pytest.mark.parametrize("length", [1, 2])
def test_broken_files_among_others_are_left_out_and_replaced(tmp_path, length):
    paths = [tmp_path / f"{i}.npy" for i in range(6)]
    for i, path in enumerate(paths):
        np.save(path, rows(length, i))
    for path in (paths[1], paths[4]):
        path.write_bytes(b"junk of some length")
    samples = open_samples(tmp_path, ONE, None)
    assert samples.skipped == [str(paths[1]), str(paths[4])]
    expected = np.concatenate([rows(length, i) for i in (0, 2, 3, 5)])
    np.testing.assert_array_equal(gather(samples, 3), expected)
    fewer = open_samples(tmp_path, ONE, None, 3)
    assert len(fewer) == 3 * length


def test_whole_feeds_are_left_out_too(tmp_path):
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", **feed(i + 1))
    (tmp_path / "1.npz").write_bytes(b"junk")
    samples = open_samples(tmp_path, STATEFUL, None)
    assert samples.skipped == [str(tmp_path / "1.npz")]
    assert len(samples) == 2


def test_a_folder_without_a_readable_file_names_the_first(tmp_path):
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"junk of some length")
    with pytest.raises(DataError, match=r"None of the 2 files .*'.*a\.npy': it begins as no file"):
        open_samples(tmp_path, ONE, None)


def test_paths_without_samples(tmp_path):
    with pytest.raises(DataError, match=r"'.*none' does not exist"):
        open_samples(tmp_path / "none", ONE, None)
    with pytest.raises(DataError, match=r"holds no samples; expected images \(.*\.png"):
        open_samples(tmp_path, ONE, None)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="neither a folder nor"):
        open_samples(tmp_path / "a.txt", ONE, None)
    with pytest.raises(DataError, match="the model has no inputs"):
        open_samples(tmp_path, [], None)


def test_images_and_arrays_together_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", rows(1))
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images \('.*b\.png'\) and arrays \('.*a\.npy'\)"):
        open_samples(tmp_path, ONE, None)
