"""What is frozen: constants, tensors kept on disk, and the same numbers as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import (
    BODIES,
    CONV,
    image_graph,
    images,
    quantization_on,
    quantize,
    run,
    small_graph,
    targets_of,
)

from onnxq.forms.variant import PLAIN, Variant
from onnxq.graph.cut import split
from onnxq.learn import frozen
from onnxq.learn.frozen import AGAIN, TrainableSuffix, freeze, unstackable
from onnxq.learn.learn import learn
from onnxq.learn.train import Learning, Trained, make_parts
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import Recipe
from onnxq.plan import planner
from onnxq.progress import Silent
from onnxq.runtime.dataset import Joined, Mapped, run_by
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned

QUICK = Budget(epochs=2, lr=0.02, shard_size=4)


@pytest.fixture(autouse=True)
def always(monkeypatch) -> None:
    """A codebook for every layer, small ones too."""
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")


def prepared(
    folder: Path, model: ir.Model, recipe: Recipe, shape: tuple[int, ...] = (3, 8, 8)
) -> tuple[Variant, Joined]:
    x = np.random.default_rng(0).normal(size=(64, *shape)).astype(np.float32)
    targets = targets_of(folder, model, x, 24)
    return quantization_on(targets)(PLAIN, model, recipe), targets.train


def without_freezing(variant: Variant, train: Joined, recipe: Recipe) -> Learned:
    """The same run on the whole graph, with every parameter fed."""
    plan, start = variant.student.plan, variant.qparams
    trained = Trained(
        make_parts(set(recipe.learn), plan, start, variant.full_ranges()), plan, start
    )
    moving = variant.student.moving_inputs(trained.names)
    feeds = variant.student.feeds(start)
    constants = {k: v for k, v in feeds.items() if k not in moving}
    objective = variant.objective
    model = objective.attach(variant.student.model)
    remainder = TrainableSuffix(model, train, variant.held_out_outputs, constants)
    learning = Learning(variant.student, remainder, objective, start, trained, QUICK)
    return learning.run(Silent())


class Stop(Silent):
    """Stops learning after so many samples, as Ctrl-C does."""

    def __init__(self, samples: int) -> None:
        self.samples, self.learning = samples, False

    def start(self, stage: str, total: int) -> None:
        self.learning = stage == "learn"

    def at(self, done: int, text: str = "") -> None:
        if self.learning and done > self.samples:
            raise KeyboardInterrupt


LAST = {"learn": ("float-layers",), "exclude": ("Gemm",)}
MIDDLE = {"learn": ("float-layers",), "exclude": ("Conv_c",)}
CASES = {
    "float activations": Recipe(codebook=4, activation_bits=None, **LAST),
    "integers": Recipe(codebook=4, **LAST),
    "in the middle": Recipe(codebook=4, **MIDDLE),
    "with biases": Recipe(learn=("float-layers", "biases"), exclude=("Gemm",), codebook=4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["residual", "shuffle", "pad"])
def test_kept_tensors_give_the_numbers_of_the_whole_graph(tmp_path, case, name):
    recipe = CASES[case] if name == "residual" or case != "in the middle" else CASES["integers"]
    variant, train = prepared(tmp_path, small_graph(name), recipe)
    found = learn(variant, train, recipe.learn, QUICK)
    whole = without_freezing(variant, train, recipe)
    assert found.notes == [] or not whole.improved
    assert found.start_score == pytest.approx(whole.start_score, rel=1e-4)
    np.testing.assert_allclose(found.history, whole.history, rtol=1e-3)
    for weight, value in whole.qparams.weights.items():
        np.testing.assert_allclose(found.qparams.weights[weight], value, atol=1e-4)


def remainder_of(
    variant: Variant, train: Joined, learns: tuple[str, ...], folder: Path
) -> TrainableSuffix:
    student, plan = variant.student, variant.student.plan
    parts = make_parts(set(learns), plan, variant.qparams, variant.full_ranges())
    trained = Trained(parts, plan, variant.qparams)
    moving = student.moving_inputs(trained.names)
    feeds = student.feeds(variant.qparams)
    fixed = {k: v for k, v in feeds.items() if k not in moving}
    folder.mkdir()
    slices = (train, variant.held_out_outputs)
    model = variant.objective.attach(variant.student.model)
    return freeze(model, fixed, moving, slices, folder, Silent())


def test_only_what_follows_the_trained_layer_is_run(tmp_path):
    variant, train = prepared(tmp_path, small_graph("residual"), CASES["integers"])
    remainder = remainder_of(variant, train, ("float-layers",), tmp_path / "kept")
    assert remainder.train is not train and remainder.note == ""
    assert not any(node.op_type == "Conv" for node in remainder.model.graph)
    names = {str(value.name) for value in remainder.model.graph.inputs}
    assert names == {"f", "wh", "Gemm_y.bias", "y.target"}


def test_layers_behind_the_trained_one_are_constants(tmp_path):
    variant, train = prepared(tmp_path, small_graph("residual"), CASES["in the middle"])
    remainder = remainder_of(variant, train, ("float-layers",), tmp_path / "kept")
    names = {str(value.name) for value in remainder.model.graph.inputs}
    assert "wh" in remainder.model.graph.initializers and "wh" not in names
    assert "v6" in names


def test_nothing_is_kept_where_the_first_layer_is_trained(tmp_path):
    recipe = Recipe(learn=("float-layers",), exclude=("Conv_a",))
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    remainder = remainder_of(variant, train, recipe.learn, tmp_path / "kept")
    assert remainder.train is train and remainder.note == ""


def test_constants_that_are_too_large_are_fed(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "BAKED_BYTES", 400)
    recipe = CASES["in the middle"]
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    remainder = remainder_of(variant, train, recipe.learn, tmp_path / "kept")
    assert "wh" in remainder.constants or "wh" in remainder.model.graph.initializers
    found = learn(variant, train, recipe.learn, QUICK)
    np.testing.assert_allclose(
        found.history, without_freezing(variant, train, recipe).history, rtol=1e-3
    )


def test_without_room_the_whole_graph_is_run_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "DISK_SHARE", 0.0)
    recipe = CASES["integers"]
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    found = learn(variant, train, recipe.learn, QUICK)
    assert found.notes[0].startswith(f"{AGAIN}: their tensors take ")
    assert found.improved


def test_a_tensor_that_is_not_stacked_by_sample_is_not_kept(tmp_path):
    # s has features first and samples second.
    body = f"{CONV} g = GlobalAveragePool (a) f = Flatten (g) t = Transpose <perm = [1, 0]> (f)"
    rest = "e = MatMul (wm, t) s = Relu (e) u = Transpose <perm = [1, 0]> (s)"
    head = "y = Gemm <transB = 1> (u, wh, bh)"
    model = image_graph(f"{body} {rest} {head}", wm=np.eye(6, dtype=np.float32))
    _, train = prepared(tmp_path, model, Recipe())
    for seed, wrong in (("Transpose_u", ["s"]), ("Gemm_y", [])):
        parts = split(model, [seed])
        assert parts.prefix is not None
        tensors = Mapped(train, run_by(parts.prefix, parts.cut))
        assert unstackable(tensors) == wrong


def test_without_rows_by_sample_the_whole_graph_is_run_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "unstackable", lambda _: ["f"])
    recipe = CASES["integers"]
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    found = learn(variant, train, recipe.learn, QUICK)
    assert found.notes == [f"{AGAIN}: 'f' does not hold the same number of rows for each sample"]


def test_a_model_of_fixed_batch_keeps_whole_feeds(tmp_path):
    model = small_graph("residual")
    model.graph.inputs[0].shape = ir.Shape([4, 3, 8, 8])
    recipe = CASES["integers"]
    variant, train = prepared(tmp_path, model, recipe)
    assert train.batch == 4
    remainder = remainder_of(variant, train, recipe.learn, tmp_path / "kept")
    assert remainder.train is not train
    assert len(remainder.train) == len(train) == 10
    feeds = next(remainder.train.batches(16, np.array([7])))
    expected = next(train.batches(16, np.array([7])))
    np.testing.assert_array_equal(feeds["y.target"], expected["y.target"])
    found = learn(variant, train, recipe.learn, QUICK)
    assert found.improved


def test_samples_are_read_where_the_trained_part_takes_them(tmp_path):
    # y reads x itself beside what the frozen layers give.
    body = f"{CONV} g = GlobalAveragePool (a) f = Flatten (g) k = Conv (x, wy, by) "
    rest = (
        "h = GlobalAveragePool (k) i = Flatten (h) s = Add (f, i) y = Gemm <transB = 1> (s, wh, bh)"
    )
    model = image_graph(body + rest)
    recipe = Recipe(learn=("float-layers",), exclude=("Conv_k",), activation_bits=None)
    variant, train = prepared(tmp_path, model, recipe)
    remainder = remainder_of(variant, train, recipe.learn, tmp_path / "kept")
    feeds = next(remainder.train.batches(2, np.array([5, 2])))
    assert set(feeds) == {"x", "f", "y.target"}
    np.testing.assert_array_equal(feeds["x"], next(train.batches(2, np.array([5, 2])))["x"])
    found, whole = (
        learn(variant, train, recipe.learn, QUICK),
        without_freezing(variant, train, recipe),
    )
    np.testing.assert_allclose(found.history, whole.history, rtol=1e-3)


@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_cores_does_not_change_a_bit(tmp_path, monkeypatch, cores):
    recipe = CASES["with biases"]
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    expected = learn(variant, train, recipe.learn, QUICK)
    monkeypatch.setattr("onnxq.runtime.session.available_cores", lambda: cores)
    monkeypatch.setattr("onnxq.engine.engine.available_cores", lambda: cores)
    assert learn(variant, train, recipe.learn, QUICK).history == expected.history


@pytest.mark.parametrize(
    "learns", [("float-layers",), ("biases",), ("codebooks", "float-layers"), ("codebooks",)]
)
def test_every_part_goes_on_from_a_checkpoint(tmp_path, learns):
    recipe = Recipe(codebook=4, learn=learns, exclude=("Gemm",), activation_bits=None)
    variant, train = prepared(tmp_path, small_graph("residual"), recipe)
    expected = learn(variant, train, learns, Budget(epochs=3, lr=0.02, shard_size=4))
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    budget = Budget(epochs=3, lr=0.02, shard_size=4)
    with pytest.raises(KeyboardInterrupt):
        stop = Stop(2 * len(train))
        learn(variant, train, learns, budget, checkpoint=checkpoint, progress=stop)
    found = learn(variant, train, learns, budget, checkpoint=checkpoint, resume=True)
    assert (found.history, found.epoch) == (expected.history, expected.epoch)
    feeds = [variant.student.feeds(each.qparams) for each in (found, expected)]
    for name, value in feeds[1].items():
        np.testing.assert_array_equal(feeds[0][name], value)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_moving_inputs_are_those_that_change(name):
    """Doubling one range or bias changes no input that is said to stay."""
    made = quantize(small_graph(name))
    plan, student, start = made.plan, made.student, made.qparams
    before = student.feeds(start)
    for spec in plan.tensors.values():
        lowest, width = start.ranges[spec.name]
        found = student.feeds(start.with_ranges({spec.name: Range(2 * lowest, 2 * width)}))
        limits = [n for n in before if n.startswith(f"{spec.name}.")]
        moving = student.moving_inputs(limits)
        assert {k for k in before if not np.array_equal(before[k], found[k])} <= moving
    for layer, bias in start.biases.items():
        found = student.feeds(start.with_biases({layer: bias * 1e12}))
        moving = student.moving_inputs([f"{layer}.bias"])
        assert {k for k in before if not np.array_equal(before[k], found[k])} <= moving


def test_only_the_wanted_inputs_are_computed():
    made = quantize(small_graph("residual"))
    feeds = made.student.feeds(made.qparams)
    found = made.student.feeds(made.qparams, {"v6", "r.width"})
    assert set(found) == {"v6", "r.width"} <= set(feeds)
    np.testing.assert_array_equal(found["v6"], feeds["v6"])
    assert run(made.baked, {"x": images(2)})
