"""What is learned in turn: by `auto` for each width, in which order, and what comes out of it."""

from __future__ import annotations

from collections.abc import ItemsView
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_graphs import quantization_on, quantize, serialised, small_graph, targets_of

from onnxq.export.compact import export
from onnxq.forms.variant import PLAIN, Variant
from onnxq.learn import learn as module
from onnxq.learn.gptq import reconstruct as rounding
from onnxq.learn.learn import (
    FIRST_PASSES,
    FIRST_SHARE,
    ROUNDING,
    in_order,
    learn,
    learns_weights,
    spelt_out,
)
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import LayerOverride, Recipe
from onnxq.plan import planner
from onnxq.progress import Silent
from onnxq.runtime.dataset import Joined
from onnxq.student.qparams import QParams
from onnxq.train import loop
from onnxq.train.budget import SHORT_PASSES, Budget
from onnxq.train.checkpoint import Checkpoint
from onnxq.train.held_out import Learned

FEW = Recipe(weight_bits=4, first_last_bits=4, activation_bits=4)
FOUR = {"weight_bits": 4, "first_last_bits": 4}
CODED = tuple(LayerOverride(name, codebook=4) for name in ("Conv", "Gemm"))
WIDE_STAGES = [{"thresholds"}, {"rounding"}]
FEW_STAGES = [{"rounding"}, {"steps", "weights"}]


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, WIDE_STAGES),
        ({"weight_bits": 7}, WIDE_STAGES),
        ({"activation_bits": 7}, WIDE_STAGES),
        ({"weight_bits": 6}, [{"rounding"}]),
        ({"activation_bits": 6}, [{"rounding"}]),
        ({"weight_bits": 3}, [{"rounding"}]),
        ({"activation_bits": 5}, FEW_STAGES),
        ({"weight_bits": 2, "activation_bits": None}, FEW_STAGES),
        ({"activation_bits": None}, WIDE_STAGES),
        ({"layers": (LayerOverride("Gemm", weight_bits=2),)}, FEW_STAGES),
        # One layer keeps its codes, of 8 bits.
        ({"layers": CODED[:1]}, [{"thresholds", "codebooks"}, {"rounding"}]),
        (
            {"layers": CODED[:1], "weight_bits": 4, "first_last_bits": 4},
            [{"rounding"}, {"codebooks"}],
        ),
        ({"layers": CODED}, [{"thresholds", "codebooks"}]),
        ({"layers": CODED, "activation_bits": 4}, [{"steps", "weights", "codebooks"}]),
        ({"layers": CODED, "weight_bits": 3}, [{"thresholds", "codebooks"}]),
    ],
)
def test_auto_follows_the_widths(monkeypatch, options, stages):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    plan = quantize(small_graph("residual"), recipe=Recipe(**options)).plan
    assert in_order(spelt_out(("auto",), plan)) == stages


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, [{"rounding"}]),
        ({"activation_bits": 4}, [{"rounding"}]),
        ({"layers": CODED[:1]}, [{"rounding"}]),
        ({"layers": CODED}, []),
    ],
)
def test_a_fast_run_learns_rounding_alone(monkeypatch, options, stages):
    monkeypatch.setattr(planner, "codebook_refusal", lambda *args, **more: "")
    plan = quantize(small_graph("residual"), recipe=Recipe(**options)).plan
    assert in_order(spelt_out(("auto",), plan, effort="fast")) == stages
    assert spelt_out(("steps",), plan, effort="fast") == {"steps"}


def test_biases_that_share_centroids_are_not_learned_by_auto():
    plan = quantize(small_graph("residual"), recipe=FEW).plan
    assert spelt_out(("auto",), plan, shared_biases=True) == {"rounding", "steps"}
    assert learns_weights(("auto",), plan)
    assert not learns_weights(("auto",), plan, shared_biases=True)
    assert not learns_weights(("steps",), plan)


def test_shared_biases_stay_shared_at_few_bits(tmp_path):
    variant, train = make_variant(tmp_path, replace(FEW, bias_centroids=2))
    found = learn(variant, train, ("auto",), BUDGET)
    assert found.improved
    assert all(np.unique(bias).size <= 2 for bias in found.qparams.biases.values())


def test_other_options_mean_themselves():
    plan = quantize(small_graph("residual"), recipe=FEW).plan
    assert spelt_out(("none",), plan) == frozenset()
    assert spelt_out(("steps", "biases"), plan) == {"steps", "biases"}


@pytest.mark.parametrize(
    ("wanted", "stages"),
    [
        ((), []),
        (("steps", "weights"), [{"steps", "weights"}]),
        (("rounding",), [ROUNDING]),
        (("rounding", "thresholds"), [{"thresholds"}, ROUNDING]),
        (("rounding", "codebooks"), [ROUNDING, {"codebooks"}]),
        (
            ("rounding", "thresholds", "codebooks", "weights", "biases"),
            [{"thresholds", "codebooks"}, ROUNDING, {"weights", "biases"}],
        ),
    ],
)
def test_ranges_are_learned_before_rounding_and_the_rest_after(wanted, stages):
    assert in_order(frozenset(wanted)) == stages


def outcome(unit: str, epoch: int, scores: list[float], notes: list[str]) -> Learned:
    numbers, history = QParams({}, {}, {}, {}), scores[1:]
    curve = [(1.0 + i, score, 90.0 + i) for i, score in enumerate(history)]
    return Learned(
        scores[0], min(scores), epoch, history, unit, 2.0, 10, notes, curve, qparams=numbers
    )


@pytest.mark.parametrize(("epoch", "expected"), [(2, 5), (0, 1)])
def test_epochs_of_two_stages_are_counted_through(epoch, expected):
    first = outcome("error", 1, [4.0, 2.0, 3.0, 3.0], ["a"])
    second = outcome("error", epoch, [2.0, 1.5, 1.0] if epoch else [2.0, 2.5, 3.0], ["b"])
    found = second.after(first)
    assert found.epoch == expected and found.improved
    assert found.history == first.history + second.history
    assert (found.start_score, found.score) == (4.0, second.score)
    assert found.qparams is second.qparams
    assert (found.seconds, found.images, found.notes) == (4.0, 20, ["a", "b"])
    # The clock of the second starts where that of the first, 2 seconds, ended.
    assert [point[0] for point in found.curve] == [1.0, 2.0, 3.0, 3.0, 4.0]
    assert [point[1] for point in found.curve] == found.history


@pytest.mark.parametrize(("first_epoch", "epoch", "expected"), [(3, 2, 2), (3, 0, 1), (0, 0, 0)])
def test_scores_in_another_unit_are_let_go(first_epoch, epoch, expected):
    first = outcome("error", first_epoch, [4.0, 2.0, 3.0, 1.0], [])
    found = outcome("KL divergence", epoch, [0.2, 0.15, 0.1], []).after(first)
    assert found.epoch == expected
    assert (found.history, found.start_score) == ([0.15, 0.1], 0.2)
    assert found.curve == [(3.0, 0.15, 90.0), (4.0, 0.1, 91.0)]


def make_variant(folder: Path, recipe: Recipe) -> tuple[Variant, Joined]:
    model = small_graph("residual")
    # Neighbours in an image are alike: without that, rounding to nearest would do.
    x = np.random.default_rng(0).normal(size=(96, 3, 10, 10)).astype(np.float32)
    x = x[:, :, 2:, 2:] + x[:, :, 1:-1, 2:] + x[:, :, 2:, 1:-1] + x[:, :, :-2, :-2]
    targets = targets_of(folder, model, x + 0.5, 32)
    return quantization_on(targets)(PLAIN, model, recipe), targets.train


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> tuple[Variant, Joined]:
    return make_variant(tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> tuple[Variant, Joined]:
    """Ranges half as wide as what was seen: there is something to learn."""
    recipe = Recipe(calibration="max", granularity="per-tensor")
    variant, train = make_variant(tmp_path_factory.mktemp("wide"), recipe)
    ranges = {name: Range(low / 2, width / 2) for name, (low, width) in _ranges(variant)}
    numbers = variant.qparams.with_ranges(ranges)
    return replace(variant, qparams=numbers, score=variant.score_of(numbers)), train


def _ranges(variant: Variant) -> ItemsView[str, Range]:
    return variant.qparams.ranges.items()


BUDGET = Budget(epochs=4, shard_size=4, lr={"steps": 5e-4, "biases": 5e-4})


def exported(variant: Variant, learned: Learned) -> bytes:
    return serialised(export(variant.student, learned.qparams))


def test_each_stage_starts_from_the_one_before(few):
    variant, train = few
    rounded = learn(variant, train, ("rounding",), BUDGET)
    now = replace(variant, qparams=rounded.qparams, score=rounded.score)
    both = learn(variant, train, ("auto",), BUDGET)
    rest = learn(now, train, ("steps", "weights", "codebooks"), BUDGET)
    assert both.start_score == variant.score
    assert both.history == [*rounded.history, *rest.history]
    assert both.score == rest.score < rounded.score < 0.9 * variant.score
    assert exported(variant, both) == exported(variant, rest)
    assert both.score == variant.score_of(both.qparams)


@pytest.mark.parametrize(
    ("learns", "most"),
    [(("auto",), [FIRST_PASSES, SHORT_PASSES]), (("thresholds",), [SHORT_PASSES])],
)
def test_thresholds_take_fewer_passes_where_rounding_follows(wide, monkeypatch, learns, most):
    variant, train = wide
    given: list[float] = []

    def noted(*args, **more):
        given.extend(each.most_passes for each in args if isinstance(each, Budget))
        return Learned(variant.score, variant.score, qparams=variant.qparams)

    monkeypatch.setattr(module, "reconstruct", noted)
    monkeypatch.setattr(module, "train_parameters", noted)
    learn(variant, train, learns, replace(BUDGET, epochs=None, effort="default"))
    assert given == most


def test_a_stage_that_does_not_help_keeps_what_came_before(few, monkeypatch):
    variant, train = few
    rounded = learn(variant, train, ("rounding",), BUDGET)
    # No step is small enough here to leave anything better.
    found = learn(variant, train, ("auto",), replace(BUDGET, epochs=1, lr=1e6))
    assert exported(variant, found) == exported(variant, rounded)
    assert (found.score, found.epoch) == (rounded.score, 1)
    assert len(found.notes) == 1 and "--lr" in found.notes[0]


def test_the_first_stage_takes_half_of_the_time_and_the_last_all_that_is_left(few, monkeypatch):
    variant, train = few
    given: list[float] = []

    def noted(real, place):
        def run(*args, **more):
            given.append(args[place].max_seconds)
            return replace(real(*args, **more), seconds=30.0)

        return run

    monkeypatch.setattr(module, "reconstruct", noted(module.reconstruct, 2))
    monkeypatch.setattr(module, "train_parameters", noted(module.train_parameters, 3))
    learn(variant, train, ("auto",), replace(BUDGET, epochs=1, max_seconds=100.0))
    assert given == [FIRST_SHARE * 100, 70]


class StopIn(Silent):
    """Stops the run in a step of one of its stages, as Ctrl-C does."""

    def __init__(self, stage: int, steps: int) -> None:
        self.stage, self.steps = stage, steps

    def start(self, name: str, total: int) -> None:
        self.stage -= 1

    def at(self, done: int, text: str = "") -> None:
        if self.stage < 0:
            self.steps -= 1
            if self.steps < 0:
                raise KeyboardInterrupt


@pytest.mark.parametrize("made", ["few", "wide"])
@pytest.mark.parametrize(("stage", "steps"), [(0, 1), (1, 2)])
def test_a_run_stopped_in_either_stage_goes_on_to_the_same_bytes(
    tmp_path, request, monkeypatch, made, stage, steps
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    variant, train = request.getfixturevalue(made)
    whole = learn(variant, train, ("auto",), BUDGET)
    assert whole.improved
    more = {"checkpoint": Checkpoint(tmp_path / "kept", {"model": "a"})}
    with pytest.raises(KeyboardInterrupt):
        learn(variant, train, ("auto",), BUDGET, progress=StopIn(stage, steps), **more)
    found = learn(variant, train, ("auto",), BUDGET, resume=True, **more)
    assert exported(variant, found) == exported(variant, whole)
    assert found.history == whole.history and found.epoch == whole.epoch
    assert found.notes == whole.notes


@pytest.mark.parametrize("made", ["few", "wide"])
def test_a_first_stage_that_the_clock_ended_is_over(tmp_path, request, monkeypatch, made):
    """What goes on later was learned from what it had left."""
    variant, train = request.getfixturevalue(made)
    more = {"checkpoint": Checkpoint(tmp_path / "kept", {"model": "a"})}
    monkeypatch.setattr(module, "FIRST_SHARE", -1.0)
    whole = learn(variant, train, ("auto",), BUDGET)
    with pytest.raises(KeyboardInterrupt):
        learn(variant, train, ("auto",), BUDGET, progress=StopIn(1, 1), **more)
    monkeypatch.undo()
    found = learn(variant, train, ("auto",), BUDGET, resume=True, **more)
    assert exported(variant, found) == exported(variant, whole)
    assert found.notes == whole.notes
    assert exported(variant, learn(variant, train, ("auto",), BUDGET)) != exported(variant, whole)


def test_a_first_stage_that_is_over_fits_nothing_anew(tmp_path, few, monkeypatch):
    variant, train = few
    more = {"checkpoint": Checkpoint(tmp_path / "kept", {"model": "a"})}
    with pytest.raises(KeyboardInterrupt):
        learn(variant, train, ("auto",), BUDGET, progress=StopIn(1, 1), **more)

    def refuse(*args):
        raise AssertionError("this layer was fitted before")

    monkeypatch.setattr(rounding, "fit_layer", refuse)
    assert learn(variant, train, ("auto",), BUDGET, resume=True, **more).improved
