"""Fresh images in each epoch: which samples they replace, and the teacher's word on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import quantize, run, small_graph

from onnxq.data.samples import open_samples
from onnxq.learn.fresh import FreshImages
from onnxq.load.interface import input_specs
from onnxq.runtime.dataset import Joined, Mapped
from onnxq.runtime.session import Arrays, Feeds
from onnxq.student.qparams import QParams
from onnxq.train.augment import Augmentation, ImageLayout
from onnxq.train.objective import target_name
from onnxq.train.teacher import Teacher, keep_targets

COUNT = 24


class Counted:
    """A source whose images are all of the number of times that it has learned."""

    name = "x"

    def __init__(self) -> None:
        self.learned, self.seen = 0, list[tuple[set[str], int, bool]]()

    def learn(self, numbers: Feeds, count: int, late: Callable[[], bool]) -> None:
        self.learned += 1
        self.seen.append((set(numbers), count, late()))

    def draw(self, count: int) -> Iterator[np.ndarray]:
        for start in range(0, count, 5):
            own = np.arange(start, min(start + 5, count), dtype=np.float32) + 100 * self.learned
            yield np.broadcast_to(own[:, None, None, None], (len(own), 3, 8, 8))

    def text(self) -> str:
        return f"learned {self.learned}"

    def state(self) -> Arrays:
        return {"learned": np.array(self.learned)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.learned = int(state["learned"])


def outputs_of(tmp_path: Path, batch: int | None = None) -> Joined:
    model = small_graph("residual")
    if batch is not None:
        model.graph.inputs[0].shape = ir.Shape([batch, 3, 8, 8])
    x = np.random.default_rng(0).normal(size=(COUNT, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    samples = open_samples(tmp_path / "x.npz", input_specs(model), None)
    (tmp_path / "teacher").mkdir()
    return keep_targets(Teacher(model, ["y"]), samples, tmp_path / "teacher")[0]


@pytest.fixture
def outputs(tmp_path: Path) -> Joined:
    return outputs_of(tmp_path)


def teacher() -> Teacher:
    return Teacher(small_graph("residual"), ["y"])


def numbers() -> QParams:
    return quantize(small_graph("residual")).qparams


@pytest.fixture
def make(outputs: Joined, tmp_path: Path) -> Callable[..., FreshImages]:
    student = quantize(small_graph("residual")).student

    def made(source: Counted, **options) -> FreshImages:
        folder = tmp_path / f"fresh{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return FreshImages(outputs, teacher(), source, student, folder, 0, **options)

    return made


def feeds_of(fresh: FreshImages, outputs: Joined, order, epoch=0, size=7) -> Arrays:
    dataset = Mapped(outputs, partial(fresh.apply, epoch=epoch))
    found = list(dataset.batches(size, order))
    return {name: np.concatenate([feeds[name] for feeds in found]) for name in found[0]}


def test_a_share_of_the_samples_is_fresh_and_others_each_time(outputs, make):
    source = Counted()
    fresh, order = make(source, share=0.25), np.arange(COUNT)
    plain = next(outputs.batches(COUNT, order))
    replaced = []
    for epoch in range(3):
        source.learned = epoch + 1
        found = feeds_of(fresh, outputs, order, epoch)
        new = [i for i in order if not np.array_equal(found["x"][i], plain["x"][i])]
        values = sorted(float(found["x"][i].mean()) for i in new)
        assert values == [100 * (epoch + 1) + i for i in range(6)]
        replaced.append(frozenset(new))
        expected = run(small_graph("residual"), {"x": found["x"]})["y"]
        np.testing.assert_allclose(found[target_name("y")], expected, rtol=1e-4, atol=1e-4)
    assert len(set(replaced)) == 3


def test_an_epoch_that_goes_on_has_the_same_images(outputs, make):
    order = np.random.default_rng(3).permutation(COUNT)
    whole = feeds_of(make(Counted()), outputs, order)
    rest = feeds_of(make(Counted()), outputs, order[10:], size=3)
    for name, rows in rest.items():
        np.testing.assert_array_equal(rows, whole[name][10:])


def test_images_are_changed_further_after_they_are_fresh(outputs, make):
    further = Augmentation(teacher(), ("flip",), ImageLayout("x", 2, 3), 0)
    order = np.arange(COUNT)
    found = feeds_of(make(Counted(), further=further), outputs, order)
    fresh = feeds_of(make(Counted()), outputs, order)
    same = [np.array_equal(a, b) for a, b in zip(found["x"], fresh["x"], strict=True)]
    mirrored = [
        np.array_equal(a, b[..., ::-1]) for a, b in zip(found["x"], fresh["x"], strict=True)
    ]
    assert all(a or b for a, b in zip(same, mirrored, strict=True)) and not all(same)
    expected = run(small_graph("residual"), {"x": found["x"]})["y"]
    np.testing.assert_allclose(found[target_name("y")], expected, rtol=1e-4, atol=1e-4)


def test_the_source_learns_against_the_students_numbers(outputs, make):
    source = Counted()
    fresh = make(source, share=0.5)
    fresh.begin(numbers(), lambda: True)
    (found,) = source.seen
    given, count, late = found
    assert {"wx", "v6", "wh"} <= given
    assert (count, late) == (12, True)
    assert fresh.text() == "learned 1"
    other = make(Counted())
    other.load_state(fresh.state())
    assert other.text() == "learned 1"


def test_a_position_of_fixed_batch_is_replaced_as_a_whole(tmp_path):
    outputs = outputs_of(tmp_path, 4)
    (tmp_path / "fresh").mkdir()
    student = quantize(small_graph("residual")).student
    fresh = FreshImages(outputs, teacher(), Counted(), student, tmp_path / "fresh", 0)
    plain = [feeds["x"] for feeds in outputs.batches(4)]
    dataset = Mapped(outputs, partial(fresh.apply, epoch=0))
    found = [feeds["x"] for feeds in dataset.batches(4)]
    new = [b for a, b in zip(plain, found, strict=True) if not np.array_equal(a, b)]
    values = sorted(rows.mean(axis=(1, 2, 3)).tolist() for rows in new)
    assert values == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
