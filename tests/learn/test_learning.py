"""Runs of learning on a small model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import quantization_on, serialised, small_graph, targets_of

from onnxq.export.compact import export
from onnxq.forms.variant import PLAIN, Variant
from onnxq.learn import frozen
from onnxq.learn.frozen import TrainableSuffix
from onnxq.learn.learn import learn
from onnxq.learn.ranges import SHIFT
from onnxq.learn.train import Learning, Trained, make_parts
from onnxq.numerics.quantizers import Range
from onnxq.options.recipe import Recipe
from onnxq.progress import Silent
from onnxq.runtime.dataset import Joined
from onnxq.student.qparams import QParams
from onnxq.train import budget as budgets
from onnxq.train import loop
from onnxq.train.augment import Augmentation, ImageLayout
from onnxq.train.budget import Budget
from onnxq.train.checkpoint import Checkpoint, State
from onnxq.train.held_out import Learned, Score
from onnxq.train.optimizer import Adam
from onnxq.train.teacher import Targets

EPOCHS = 4
LONG = ("steps", "weights")


@dataclass(frozen=True)
class Ready:
    """A variant that was calibrated, and what it is trained on."""

    variant: Variant
    targets: Targets

    @property
    def train(self) -> Joined:
        return self.targets.train

    @property
    def start(self) -> QParams:
        """Ranges half as wide as what was seen: there is something to learn."""
        ranges = self.variant.qparams.ranges
        return self.variant.qparams.with_ranges(
            {name: Range(low / 2, width / 2) for name, (low, width) in ranges.items()}
        )

    def learning(
        self,
        checkpoint: Checkpoint | None = None,
        learns: tuple[str, ...] = ("thresholds",),
        augment: tuple[str, ...] = (),
        **options,
    ) -> Learning:
        transform = Augmentation(self.targets.teacher, augment, ImageLayout("x", 2, 3), seed=0)
        variant = self.variant
        budget = Budget(**({"epochs": EPOCHS, "lr": 0.02, "shard_size": 4} | options))
        plan = variant.student.plan
        parts = make_parts(set(learns), plan, self.start, variant.full_ranges(), variant.elements())
        objective = variant.objective
        model = objective.attach(variant.student.model)
        return Learning(
            variant.student,
            TrainableSuffix(model, self.train, variant.held_out_outputs),
            objective,
            self.start,
            Trained(parts, plan, self.start),
            budget,
            checkpoint,
            transform if augment else None,
        )

    def exported(self, learned: Learned) -> bytes:
        return serialised(export(self.variant.student, learned.qparams))


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3, 8, 8)).astype(np.float32)


def make_ready(folder: Path, model: ir.Model, recipe: Recipe, count: int = 96) -> Ready:
    targets = targets_of(folder, model, images(count), 32)
    return Ready(quantization_on(targets)(PLAIN, model, recipe), targets)


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Ready:
    recipe = Recipe(calibration="max", bias_correction=False, granularity="per-tensor")
    return make_ready(tmp_path_factory.mktemp("ready"), small_graph("residual"), recipe)


@pytest.fixture(scope="module")
def learned(ready) -> Learned:
    return ready.learning().run(Silent())


def test_learning_lowers_the_held_back_score(ready, learned):
    assert learned.start_score == ready.variant.score_of(ready.start)
    assert learned.improved
    assert learned.score < 0.5 * learned.start_score
    assert learned.score == min(learned.history) == learned.history[learned.epoch - 1]
    assert len(learned.history) == EPOCHS
    assert learned.images == EPOCHS * len(ready.train)
    seconds, scores, agreements = zip(*learned.curve, strict=True)
    assert list(scores) == learned.history and seconds[0] > 0
    assert list(seconds) == sorted(seconds) and seconds[-1] <= learned.seconds
    assert all(0 <= agreement <= 100 for agreement in agreements)


def test_the_score_is_that_of_the_numbers(ready, learned):
    assert ready.variant.score_of(learned.qparams) == learned.score


def test_a_second_run_gives_the_same_bytes(ready, learned):
    again = ready.learning().run(Silent())
    assert again.history == learned.history
    assert ready.exported(again) == ready.exported(learned)


def test_another_seed_takes_another_order(ready, learned):
    assert ready.learning(seed=1).run(Silent()).history != learned.history


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_the_number_of_cores_does_not_change_a_byte(tmp_path, monkeypatch, cores, ready, learned):
    monkeypatch.setattr("onnxq.runtime.session.available_cores", lambda: cores)
    monkeypatch.setattr("onnxq.engine.engine.available_cores", lambda: cores)
    recipe = Recipe(calibration="max", bias_correction=False, granularity="per-tensor")
    other = make_ready(tmp_path, small_graph("residual"), recipe)
    found = other.learning().run(Silent())
    assert found.history == learned.history
    assert other.exported(found) == ready.exported(learned)


def test_a_start_that_is_not_beaten_is_kept(ready, monkeypatch):
    learning = ready.learning()
    monkeypatch.setattr(learning._held_out, "evaluate", lambda _: Score(1e9))
    start = learning._result.qparams
    found = learning.run(Silent())
    assert not found.improved
    assert found.qparams is start
    assert found.score == found.start_score
    assert found.history == [1e9] * EPOCHS


def test_an_equal_score_is_no_improvement(ready, monkeypatch):
    learning = ready.learning(epochs=1)
    equal = Score(learning._result.start_score)
    monkeypatch.setattr(learning._held_out, "evaluate", lambda _: equal)
    assert not learning.run(Silent()).improved


def test_without_time_nothing_is_learned(ready):
    learning = ready.learning(max_seconds=-1.0)
    start = learning._result.qparams
    found = learning.run(Silent())
    assert found.history == []
    assert found.qparams is start


def state_of(arrays: dict[str, np.ndarray]) -> State:
    state = State(0)
    state.load({name: arrays[f"state/{name}"] for name in ("numbers", "history", "curve")})
    return state


class Stop(Silent):
    """Stops the run in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def at(self, done: int, text: str = "") -> None:
        self.steps -= 1
        if self.steps < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_a_resumed_run_gives_the_bytes_of_one_that_was_not_stopped(
    tmp_path, ready, learned, epochs_done
):
    steps = -(-len(ready.train) // 8)
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    with pytest.raises(KeyboardInterrupt):
        # One call of the listener comes before the first step.
        ready.learning(checkpoint).run(Stop(1 + epochs_done * steps + 2))
    state = checkpoint.load()
    assert state is not None
    assert state_of(state).epoch == epochs_done
    found = ready.learning(checkpoint).run(Silent(), resume=True)
    assert found.history == learned.history
    assert (found.score, found.epoch) == (learned.score, learned.epoch)
    assert ready.exported(found) == ready.exported(learned)
    # The clock goes on from where it was stopped.
    kept = state_of(state).curve
    assert found.curve[:epochs_done] == kept and len(found.curve) == len(learned.curve)
    assert all(point[0] > kept[-1][0] for point in found.curve[epochs_done:])


def test_without_resume_a_checkpoint_is_not_read(tmp_path, ready, learned):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    ready.learning(checkpoint, epochs=2).run(Silent())
    assert ready.learning(checkpoint).run(Silent()).history == learned.history


def test_each_epoch_is_saved_once(tmp_path, ready, monkeypatch):
    epochs = []
    monkeypatch.setattr(Checkpoint, "save", lambda self, arrays: epochs.append(state_of(arrays)))
    ready.learning(Checkpoint(tmp_path, {}), epochs=3).run(Silent())
    assert [(state.epoch, state.epochs) for state in epochs] == [(1, 3), (2, 3), (3, 3)]


def test_resuming_a_finished_run_changes_nothing(tmp_path, ready, learned):
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    ready.learning(checkpoint).run(Silent())
    found = ready.learning(checkpoint).run(Silent(), resume=True)
    assert ready.exported(found) == ready.exported(learned)


class Watch(Silent):
    """Looks at the trained values after every step."""

    def __init__(self, learning: Learning) -> None:
        self.learning = learning
        self.lowest, self.highest, self.steps = np.inf, -np.inf, 0

    def at(self, done: int, text: str = "") -> None:
        for key, value in self.learning._trained.values.items():
            shift = key.startswith(SHIFT)
            assert np.all(np.isfinite(value))
            assert np.all((value >= (-0.2 if shift else 0.5)) & (value <= (0.4 if shift else 1)))
            if not shift:
                self.lowest = min(self.lowest, float(value.min()))
                self.highest = max(self.highest, float(value.max()))
        self.steps += 1


def test_values_never_leave_their_bounds_at_any_rate(ready):
    learning = ready.learning(lr=0.5, epochs=2)
    watch = Watch(learning)
    learning.run(watch)
    assert watch.steps == 1 + 2 * -(-len(ready.train) // 8)
    assert (watch.lowest, watch.highest) == (0.5, 1.0)


def test_the_optimizer_forgets_and_the_rate_rises_at_every_restart(ready, monkeypatch):
    monkeypatch.setattr(loop, "RESTART_EPOCHS", 1)
    events: list[str | float] = []

    class Noted(Adam):
        def reset(self) -> None:
            events.append("reset")
            super().reset()

        def step(self, parameters, gradients) -> None:
            assert set(self.rates.values()) == {0.02}
            events.append(0.02 * self.lr)
            super().step(parameters, gradients)

    monkeypatch.setattr(budgets, "Adam", Noted)
    ready.learning(epochs=3).run(Silent())
    steps = -(-len(ready.train) // 8)
    rates = [event for event in events if event != "reset"]
    assert len(rates) == 3 * steps
    assert rates[::steps] == [0.02] * 3
    assert rates[:steps] == sorted(rates[:steps], reverse=True)
    # The first one is the constructor's.
    assert [i for i, e in enumerate(events) if e == "reset"] == [0, steps + 1, 2 * steps + 2]


def test_a_symmetric_start_is_improved_too(tmp_path):
    recipe = Recipe(calibration="max", symmetric=True, granularity="per-tensor")
    ready = make_ready(tmp_path, small_graph("leaky"), recipe)
    found = ready.learning().run(Silent())
    assert found.improved


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("rate", [1e6, 1e38])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_rate_is_high_enough_to_end_the_run(ready, optimizer, rate):
    found = ready.learning(learns=LONG, lr=rate, optimizer=optimizer, epochs=3).run(Silent())
    assert len(found.history) == 3
    assert not found.improved


@pytest.mark.parametrize("what", ["loss", "gradients"])
@pytest.mark.parametrize("step", [0, 3, 11])
def test_what_is_not_finite_ends_the_epoch_and_learning_begins_again_more_slowly(
    ready, monkeypatch, what, step
):
    run = ready.learning(epochs=3)
    first = {key: value.copy() for key, value in run._trained.values.items()}
    real, seen = run._engine.gradients, list[tuple[float, bool]]()

    def gradients(parameters, shards):
        anew = all(np.array_equal(value, first[key]) for key, value in run._trained.values.items())
        seen.append((run._state.rate, anew))
        loss, found = real(parameters, shards)
        if len(seen) != step + 1:
            return loss, found
        if what == "loss":
            return float("nan"), found
        return loss, {name: np.full_like(value, np.inf) for name, value in found.items()}

    monkeypatch.setattr(run._engine, "gradients", gradients)
    found = run.run(Silent())
    assert found.improved and len(found.history) == 3
    assert seen[: step + 1] == [(1.0, i == 0) for i in range(step + 1)]
    assert seen[step + 1] == (loop.SLOWER, True)
    # The epoch lacks its remaining steps.
    assert len(seen) == 3 * 8 - (7 - step % 8)


def test_a_rate_that_is_too_high_is_lowered_and_learning_begins_again(ready, tmp_path):
    """Biases have no bounds that would hold them."""
    off = {name: 1.5 * bias for name, bias in ready.variant.qparams.biases.items()}
    qparams = ready.variant.qparams.with_biases(off)
    score = ready.variant.score_of(qparams)
    variant = replace(ready.variant, qparams=qparams, score=score)
    checkpoint = Checkpoint(tmp_path / "c", {})
    budget = Budget(epochs=8, lr=8.0, shard_size=4)
    found = learn(variant, ready.train, {"biases"}, budget, checkpoint=checkpoint)
    assert found.history[0] > loop.MUCH_WORSE * found.start_score
    assert found.improved
    arrays = checkpoint.load()
    assert arrays is not None and state_of(arrays).rate < 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("learns", [LONG, ("thresholds",)])
@pytest.mark.parametrize("steps_done", [3, 13])
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bytes(
    tmp_path, ready, monkeypatch, learns, optimizer, steps_done
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    lr = 0.005 if optimizer == "adam" else 0.0005
    options = {"learns": learns, "epochs": 3, "lr": lr, "optimizer": optimizer}
    expected = ready.learning(**options).run(Silent())
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    with pytest.raises(KeyboardInterrupt):
        ready.learning(checkpoint, **options).run(Stop(1 + steps_done))
    arrays = checkpoint.load()
    assert arrays is not None
    # The step in which it stopped was not saved any more.
    state, steps = state_of(arrays), -(-len(ready.train) // 8)
    assert (state.epoch, state.step) == divmod(steps_done, steps)
    assert state.step > 0
    found = ready.learning(checkpoint, **options).run(Silent(), resume=True)
    assert found.history == expected.history
    assert (found.score, found.epoch) == (expected.score, expected.epoch)
    assert ready.exported(found) == ready.exported(expected)


def test_steps_and_weights_lower_the_held_back_score(ready):
    # A weight's unit is its step, of which 8 bits have many.
    rates = {"steps": 0.005, "weights": 0.25, "biases": 0.005}
    found = ready.learning(learns=LONG, lr=rates).run(Silent())
    assert found.score < 0.5 * found.start_score
    assert found.unit == "error"


@pytest.mark.parametrize(("learns", "epochs"), [(("thresholds",), 16), (LONG, 30)])
def test_a_run_without_a_better_score_stops_early_where_the_rate_restarts(
    ready, monkeypatch, learns, epochs
):
    run = ready.learning(epochs=30, learns=learns)
    equal = Score(run._result.start_score)
    monkeypatch.setattr(run._held_out, "evaluate", lambda _: equal)
    # Half of the epochs may pass without one, and one more shows that they did.
    assert len(run.run(Silent()).history) == epochs


def cycles(ready, monkeypatch, scores, **options) -> tuple[Learned, list[float]]:
    """A run that stops when it gains little, and its rates; the scores are shares of the start."""
    monkeypatch.setattr(loop, "LOOK_STEPS", 4)
    run = ready.learning(epochs=None, effort="default", **options)
    start, left = run._result.start_score, iter(scores)
    monkeypatch.setattr(run, "_judge_taken", lambda: Score(start * next(left)))
    rates, rate = list[float](), run._rate
    monkeypatch.setattr(run, "_rate", lambda: rates.append(rate()) or rates[-1])
    return run.run(Silent()), rates


def test_learning_stops_after_a_look_that_gains_little(ready, monkeypatch):
    found, rates = cycles(ready, monkeypatch, [0.999])
    assert found.improved and found.images == 4 * 8
    assert len(rates) == 4 and rates[-1] < 0.2
    (note,) = found.notes
    # Half of the 64 samples forth and back are one and a half passes; 8 epochs would be 24.
    assert note.startswith(f"{loop.STOPPED} 1.5 forward passes") and "22 more" in note
    assert "by 0.1%" in note


def test_each_cycle_is_twice_as_long_while_it_pays(ready, monkeypatch):
    found, rates = cycles(ready, monkeypatch, [0.9, 0.85, 0.8, 0.8, 0.8, 0.8, 0.79])
    assert len(found.history) == 7
    assert [i for i, rate in enumerate(rates) if rate == 1.0] == [0, 4, 12]
    found, _ = cycles(ready, monkeypatch, [0.9**i for i in range(1, 99)])
    assert len(found.history) == 8, "no more than the passes that it may take"


def test_a_rate_that_was_lowered_has_another_look(ready, monkeypatch):
    found, rates = cycles(ready, monkeypatch, [2.0, 0.999])
    assert len(found.history) == 2
    assert [rates[0], rates[4]] == [1.0, loop.SLOWER]


def test_a_run_that_stops_when_it_gains_little_is_resumed_to_the_same_bytes(
    tmp_path, ready, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOOK_STEPS", 4)
    options = {"epochs": None, "effort": "default"}
    expected = ready.learning(**options).run(Silent())
    assert len(expected.history) > 2
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    with pytest.raises(KeyboardInterrupt):
        ready.learning(checkpoint, **options).run(Stop(1 + 6))
    found = ready.learning(checkpoint, **options).run(Silent(), resume=True)
    assert (found.history, found.notes) == (expected.history, expected.notes)
    assert ready.exported(found) == ready.exported(expected)
    # It has ended.
    again = ready.learning(checkpoint, **options).run(Silent(), resume=True)
    assert (again.history, again.images) == (expected.history, 0)
    assert again.notes == expected.notes


class Clock(Silent):
    """A clock that a step moves by a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def at(self, done: int, text: str = "") -> None:
        self.now += 1.0


@pytest.mark.parametrize(("seconds", "epochs"), [(25.0, 2), (40.0, 4), (1e9, 6)])
def test_the_rate_falls_within_the_epochs_that_the_clock_allows(
    ready, monkeypatch, seconds, epochs
):
    clock, rates = Clock(), list[float]()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    run = ready.learning(learns=LONG, epochs=6, max_seconds=seconds)
    rate = run._rate
    monkeypatch.setattr(run, "_rate", lambda: rates.append(rate()) or rates[-1])
    found = run.run(clock)
    # 9 seconds for the first epoch: 8 steps, and one that starts.
    assert len(found.history) == epochs
    assert rates[-1] < 0.05


def test_weights_and_steps_learn_under_one_cosine(ready, monkeypatch):
    rates, resets = list[float](), list[int]()

    class Noted(Adam):
        def reset(self) -> None:
            resets.append(len(rates))
            super().reset()

        def step(self, parameters, gradients) -> None:
            rates.append(self.lr)
            super().step(parameters, gradients)

    monkeypatch.setattr(budgets, "Adam", Noted)
    ready.learning(learns=LONG, epochs=6, lr=0.005).run(Silent())
    assert len(rates) == 6 * 8
    assert rates[0] == 1.0 and rates[-1] < 0.01
    assert rates == sorted(rates, reverse=True)
    # The constructor's alone.
    assert resets == [0]


def test_a_model_of_fixed_batch_takes_every_feed_once_in_an_epoch(tmp_path):
    model = small_graph("residual")
    model.graph.inputs[0].shape = ir.Shape([4, 3, 8, 8])
    recipe = Recipe(calibration="max", bias_correction=False, granularity="per-tensor")
    ready = make_ready(tmp_path, model, recipe)
    assert len(ready.train) == 16
    run = ready.learning(epochs=2)
    taken, step = list[int](), run._step

    def noted(shards, count):
        assert sum(len(shard["x"]) for shard in shards) == count
        taken.append(count)
        return step(shards, count)

    run._step = noted
    found = run.run(Silent())
    assert taken == [8] * 16
    assert found.images == 2 * 64
    assert found.improved


def test_an_augmented_run_goes_on_to_the_same_bytes(tmp_path, ready, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    options = {"learns": LONG, "epochs": 2, "lr": 0.005, "augment": ("flip", "shift")}
    expected = ready.learning(**options).run(Silent())
    plain = ready.learning(**{**options, "augment": ()}).run(Silent())
    assert expected.history != plain.history
    assert expected.improved
    checkpoint = Checkpoint(tmp_path / "state", {"model": "m"})
    with pytest.raises(KeyboardInterrupt):
        ready.learning(checkpoint, **options).run(Stop(1 + 11))
    found = ready.learning(checkpoint, **options).run(Silent(), resume=True)
    assert found.history == expected.history
    assert ready.exported(found) == ready.exported(expected)


def test_an_augmented_run_keeps_no_tensors_of_samples(ready, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing of a changed sample may be kept")

    monkeypatch.setattr(frozen, "Stored", refuse)
    transform = Augmentation(ready.targets.teacher, ("flip",), ImageLayout("x", 2, 3), 0)
    budget = Budget(epochs=1, shard_size=4)
    # What is before the first bias is kept where samples stay as they are.
    with pytest.raises(AssertionError, match="may be kept"):
        learn(ready.variant, ready.train, {"biases"}, budget)
    found = learn(ready.variant, ready.train, {"biases"}, budget, transform=transform)
    assert len(found.history) == 1
