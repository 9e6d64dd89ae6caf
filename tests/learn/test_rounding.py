"""Learned rounding of small models: numbers, blocks, checkpoints, and what is left alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import (
    CONV,
    HEAD,
    image_graph,
    quantization_on,
    run,
    serialised,
    small_graph,
    targets_of,
)

from onnxq.errors import OutputError
from onnxq.export.compact import export
from onnxq.forms.variant import PLAIN, Variant
from onnxq.learn.gptq import cuts
from onnxq.learn.gptq import reconstruct as module
from onnxq.learn.gptq.reconstruct import NO_GAIN, reconstruct
from onnxq.learn.learn import learn
from onnxq.learn.ranges import THRESHOLD, ThresholdScales
from onnxq.learn.train import NO_GAIN as GAINED_NOTHING
from onnxq.numerics.quantizers import fake_quant_weight
from onnxq.options.recipe import Recipe
from onnxq.runtime.dataset import Joined
from onnxq.student.qparams import fake_weight
from onnxq.student.student import bake
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned

RECIPE = Recipe(weight_bits=3, first_last_bits=3)


@dataclass(frozen=True)
class Ready:
    """A variant that was calibrated, and the slice it is fitted on."""

    variant: Variant
    train: Joined

    def fitted(self, **more) -> Learned:
        return reconstruct(self.variant, self.train, **more)

    def exported(self, learned: Learned) -> ir.Model:
        return export(self.variant.student, learned.qparams)


def make_ready(folder: Path, model: ir.Model, recipe: Recipe = RECIPE, count: int = 160) -> Ready:
    # Neighbours in an image are alike: without that, rounding to nearest would do.
    x = np.random.default_rng(0).normal(size=(count, 3, 10, 10)).astype(np.float32)
    x = x[:, :, 2:, 2:] + x[:, :, 1:-1, 2:] + x[:, :, 2:, 1:-1] + x[:, :, :-2, :-2]
    targets = targets_of(folder, model, x + 0.5, 32)
    return Ready(quantization_on(targets)(PLAIN, model, recipe), targets.train)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Ready:
    return make_ready(tmp_path_factory.mktemp("ready"), small_graph("residual"))


@pytest.fixture(scope="module")
def fitted(ready) -> Learned:
    return ready.fitted()


GRAPHS = (
    "residual", "no_bias", "depth_wise", "pad_signed", "shuffle", "split", "transposed", "excite",
    "float_side",
)  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_it_beats_rounding_to_nearest(tmp_path, name):
    ready = make_ready(tmp_path, small_graph(name))
    learned = ready.fitted()
    assert learned.improved
    # Measured: 0.21 to 0.48 of the error at the start.
    assert learned.score < 0.6 * learned.start_score
    assert learned.score == ready.variant.score_of(learned.qparams)


def test_weights_lie_on_their_grid_and_biases_are_as_written(ready, fitted):
    student = ready.variant.student
    scales = student.weight_scales(fitted.qparams)
    for spec in student.plan.layers.values():
        weight = fitted.qparams.weights[spec.weight]
        fake = fake_weight(spec, fitted.qparams, scales[spec.weight])
        np.testing.assert_array_equal(fake, weight)
        assert (
            np.unique(weight / scales[spec.weight].reshape(-1, *[1] * (weight.ndim - 1))).size < 9
        )
    assert fitted.qparams.means == {}


def test_the_export_computes_what_the_student_does(ready, fitted):
    student = bake(ready.variant.student, fitted.qparams)
    x = next(ready.train.parts[0].batches(16))
    found = run(ready.exported(fitted), x)["y"]
    # The student's sums are float32, the kernels' int32.
    np.testing.assert_allclose(found, run(student, x)["y"], rtol=1e-4, atol=1e-4)


def test_a_second_run_and_other_cores_give_the_same_bytes(ready, fitted, monkeypatch):
    for cores in (1, 3):
        monkeypatch.setattr("onnxq.runtime.session.available_cores", lambda cores=cores: cores)
        again = ready.fitted()
        assert serialised(ready.exported(again)) == serialised(ready.exported(fitted))


def test_float_activations(tmp_path):
    recipe = replace(RECIPE, activation_bits=None)
    learned = make_ready(tmp_path, small_graph("residual"), recipe).fitted()
    assert learned.score < 0.6 * learned.start_score


def test_one_scale_per_tensor(tmp_path):
    recipe = replace(RECIPE, granularity="per-tensor")
    ready = make_ready(tmp_path, small_graph("residual"), recipe)
    learned = ready.fitted()
    assert learned.score < 0.6 * learned.start_score
    for spec in ready.variant.student.plan.layers.values():
        assert learned.qparams.thresholds[spec.weight].shape == ()
        weight = learned.qparams.weights[spec.weight]
        scale = ready.variant.student.weight_scales(learned.qparams)
        np.testing.assert_array_equal(
            fake_quant_weight(weight, scale[spec.weight], 3, None), weight
        )


def test_shared_biases_stay(tmp_path):
    recipe = replace(RECIPE, bias_centroids=1)
    ready = make_ready(tmp_path, small_graph("residual"), recipe)
    learned = ready.fitted()
    assert learned.improved
    for name, bias in ready.variant.qparams.biases.items():
        np.testing.assert_array_equal(learned.qparams.biases[name], bias)


def test_layers_that_share_a_weight_and_transposed_ones_are_left_alone(tmp_path):
    for name, count in (("shared", 2), ("transposed", 1)):
        (tmp_path / name).mkdir()
        ready = make_ready(tmp_path / name, small_graph(name))
        learned = ready.fitted()
        assert f"{count} of {len(ready.variant.student.plan.layers)} layers" in learned.notes[0]
        kept = "v6" if name == "shared" else "wt"
        np.testing.assert_array_equal(
            learned.qparams.weights[kept], ready.variant.qparams.weights[kept]
        )


def test_thresholds_come_first_and_other_methods_go_on(tmp_path, ready, fitted):
    budget = Budget(epochs=2)
    thresholds = learn(ready.variant, ready.train, ("thresholds",), budget)
    moved = replace(ready.variant, qparams=thresholds.qparams, score=thresholds.score)
    rounded = reconstruct(moved, ready.train)
    both = learn(ready.variant, ready.train, ("rounding", "thresholds"), budget)
    assert both.start_score == ready.variant.score
    assert both.history == [*thresholds.history, *rounded.history]
    assert both.score == rounded.score and both.epoch == 3
    assert both.qparams.ranges == thresholds.qparams.ranges
    more = learn(ready.variant, ready.train, ("rounding", "biases"), budget)
    assert more.history[0] == fitted.score and len(more.history) == 3
    assert more.score <= fitted.score
    for weight, found in fitted.qparams.weights.items():
        np.testing.assert_array_equal(more.qparams.weights[weight], found)


@pytest.mark.parametrize("asked", ["auto", "both"])
def test_a_stage_that_won_nothing_is_named_to_who_asked_for_it(tmp_path, asked):
    recipe = Recipe()
    ready = make_ready(tmp_path, small_graph("residual"), recipe)
    wanted = ("auto",) if asked == "auto" else ("thresholds", "rounding", "biases")
    learned = learn(ready.variant, ready.train, wanted, Budget(epochs=1, lr=1e-30))
    assert learned.improved
    named = [note.removesuffix(f" {GAINED_NOTHING}") for note in learned.notes]
    assert named == ([] if asked == "auto" else ["learning of thresholds", "learning of biases"])


def test_thresholds_of_weights_on_their_grid_stay(ready, fitted):
    numbers = replace(ready.variant, qparams=fitted.qparams, score=fitted.score)
    scales = ThresholdScales(ready.variant.student.plan, fitted.qparams, numbers.full_ranges())
    assert not [key for key in scales.values if key.startswith(THRESHOLD)]
    start = ready.variant.qparams
    scales = ThresholdScales(ready.variant.student.plan, start, numbers.full_ranges())
    assert [key for key in scales.values if key.startswith(THRESHOLD)]


@pytest.mark.parametrize("count", [1, 2])
def test_resuming_both_gives_the_same_bytes(tmp_path, ready, monkeypatch, count):
    both, budget = ("rounding", "thresholds"), Budget(epochs=2)
    whole = learn(ready.variant, ready.train, both, budget)
    checkpoint = Checkpoint(tmp_path / "kept", {"model": "a"})
    more = {"checkpoint": checkpoint}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, count)
        learn(ready.variant, ready.train, both, budget, **more)
    resumed = learn(ready.variant, ready.train, both, budget, resume=True, **more)
    assert serialised(ready.exported(resumed)) == serialised(ready.exported(whole))
    checkpoint.discard()
    assert not checkpoint.folder.exists()


def test_the_start_is_kept_where_it_is_better(tmp_path, monkeypatch):
    ready = make_ready(tmp_path, small_graph("residual"))
    monkeypatch.setattr(Variant, "score_of", lambda self, numbers: 2 * self.score)
    learned = ready.fitted()
    assert not learned.improved and learned.qparams is ready.variant.qparams
    assert NO_GAIN in learned.notes


def test_a_layer_that_sees_no_finite_numbers_is_left_alone(ready, monkeypatch):
    monkeypatch.setattr(module.Moments, "finite", property(lambda self: self.geometry.axis > 0))
    learned = ready.fitted()
    assert not learned.improved
    assert len([note for note in learned.notes if module.INFINITE in note]) == 3


def test_no_time_leaves_the_start_and_says_so(ready):
    learned = ready.fitted(budget=Budget(max_seconds=-1.0))
    assert not learned.improved
    assert any("time ran out" in note for note in learned.notes)


def stop_at(monkeypatch, count: int) -> list[str]:
    """Let the fit of the layer after `count` others fail; the names of those fitted."""
    names: list[str] = []
    real = module.fit_layer

    def fit(spec, *args):
        if len(names) == count:
            raise KeyboardInterrupt
        names.append(spec.name)
        return real(spec, *args)

    monkeypatch.setattr(module, "fit_layer", fit)
    return names


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path, ready, fitted, monkeypatch, count
):
    checkpoint = Checkpoint(tmp_path / "kept", {"model": "a"}).part("rounding")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, count)
        ready.fitted(checkpoint=checkpoint)
    names = stop_at(monkeypatch, 99)
    resumed = ready.fitted(checkpoint=checkpoint, resume=True)
    assert len(names) == len(ready.variant.student.plan.layers) - count
    assert serialised(ready.exported(resumed)) == serialised(ready.exported(fitted))
    with pytest.raises(OutputError, match="another run"):
        ready.fitted(
            checkpoint=Checkpoint(tmp_path / "kept", {"model": "b"}, "rounding"), resume=True
        )


def test_a_stage_that_was_over_is_not_prepared_again(tmp_path, ready, monkeypatch):
    monkeypatch.setattr(cuts, "KEPT_BYTES", 2**18)
    checkpoint = Checkpoint(tmp_path / "kept", {"model": "a"})
    found = ready.fitted(checkpoint=checkpoint)
    monkeypatch.setattr(module, "Reconstruction", None)
    again = ready.fitted(checkpoint=checkpoint, resume=True)
    assert serialised(ready.exported(again)) == serialised(ready.exported(found))
    assert (again.notes, again.images, again.score) == (found.notes, found.images, found.score)
    assert "samples were used" in again.notes[0]


def test_a_run_that_was_killed_has_a_checkpoint_too(tmp_path, ready, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    checkpoint = Checkpoint(tmp_path / "kept", {"model": "a"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2)
        patch.setattr(module.Reconstruction, "_text", lambda *args: "")
        ready.fitted(checkpoint=checkpoint)
    assert len([name for name in checkpoint.load() if name.startswith("weight/")]) == 2


def test_tensors_without_room_in_memory_give_the_same_bytes(ready, fitted, monkeypatch):
    saved: list[int] = []
    save = cuts.Frontier._saved
    monkeypatch.setattr(cuts, "MEMORY_BYTES", 2**17)
    monkeypatch.setattr(
        cuts.Frontier, "_saved", lambda self, array: saved.append(1) or save(self, array)
    )
    again = ready.fitted()
    assert saved
    assert serialised(ready.exported(again)) == serialised(ready.exported(fitted))


def test_without_room_on_disk_it_is_said_whose_tensors_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(cuts, "MEMORY_BYTES", 0)
    frontier = cuts.Frontier(tmp_path / "absent", "the student's tensors")
    with pytest.raises(OutputError, match="no room for the student's tensors"):
        frontier.add({"x": np.zeros(3)})


def test_more_samples_than_moments_need_are_not_run(ready, monkeypatch):
    monkeypatch.setattr(cuts, "SAMPLES", 32)
    learned = ready.fitted()
    assert learned.images == 32 and learned.notes == []


def test_a_cut_may_be_at_a_tensor_without_a_row_for_each_sample(tmp_path, monkeypatch):
    kept: list[tuple[int, ...]] = []
    keep = cuts.Frontier._keep

    def noted(self, arrays):
        kept.extend(array.shape for array in arrays.values())
        keep(self, arrays)

    monkeypatch.setattr(cuts.Frontier, "_keep", noted)
    turned = "t = Transpose <perm = [2, 0, 3, 1]> (r) m = MatMul (t, wm)"
    body = f"{CONV} r = Relu (a) {turned} z = Transpose <perm = [1, 3, 0, 2]> (m) {HEAD}"
    wm = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    learned = make_ready(tmp_path, image_graph(body, wm=wm)).fitted()
    assert learned.improved and learned.notes == []
    assert (8, cuts.MICRO_BATCH, 8, 6) in kept


def test_little_room_takes_fewer_samples(ready, monkeypatch):
    monkeypatch.setattr(cuts, "KEPT_BYTES", 2**18)
    learned = ready.fitted()
    assert 0 < learned.images < len(ready.train)
    assert f"{learned.images} of {len(ready.train)} samples" in learned.notes[0]


def test_a_fixed_batch_and_several_blocks_in_one(tmp_path):
    body = f"{CONV} r = Relu (a) c = Conv (r, v6, c6) d = Conv (c, w6, b6) z = Add (r, d) {HEAD}"
    model = image_graph(body.replace("w6", "v6x"), v6x=np.ones((6, 6, 1, 1), np.float32) / 6)
    model.graph.inputs[0].shape = ir.Shape([4, 3, 8, 8])
    learned = make_ready(tmp_path, model).fitted()
    assert learned.improved
