"""The search on models that are formulas: layers interact, learning mends, drops are noisy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.options.recipe import Recipe
from onnxq.search.goal import (
    POINTS_PER_NAT,
    Goal,
    allowed_error,
    drop_of,
    expected_drop,
    find_frontier,
    goal_of,
)
from onnxq.search.search import MOST_TRIALS, Search
from onnxq.search.table import Effect, Setting

HEADERS = 5000


def layers(count=12, seed=0):
    """Errors fall as 1 / K^2, as they do for k-means."""
    rng = np.random.default_rng(seed)
    return [
        {
            Setting(codebook=k): Effect(int(size * bits / 8), float(weight / k**2))
            for bits, k in ((b, 2**b) for b in range(1, 9))
        }
        for size, weight in zip(
            rng.integers(10_000, 200_000, count), rng.uniform(0.02, 2, count), strict=True
        )
    ]


class Formula:
    """A model whose error is `factor` times the sum of its layers', and `base` beside it."""

    def __init__(self, options, factor=1.0, base=0.0, slope=25.0):
        self.options, self.factor, self.base, self.slope = options, factor, base, slope
        self.tried = []
        self.most_trials = 99

    def has_time(self):
        return len(self.tried) < self.most_trials

    def file_size(self, chosen):
        return HEADERS + sum(o[s].size for o, s in zip(self.options, chosen, strict=True))

    def trial(self, chosen):
        error = sum(o[s].error for o, s in zip(self.options, chosen, strict=True))
        error = self.base + self.factor * error
        self.tried.append(chosen)
        return Effect(self.file_size(chosen), error, self.slope * error, 0.0)


@given(
    seed=st.integers(0, 50),
    factor=st.floats(0.05, 5),
    slope=st.floats(20, 60),
    most=st.floats(0.1, 5),
)
@settings(deadline=None, max_examples=60)
def test_a_drop_is_met_with_little_to_spare(seed, factor, slope, most):
    options = layers(seed=seed)
    frontier = find_frontier(options)
    evaluator = Formula(options, factor, slope=slope)
    search = Search(frontier, "kl", Goal(max_drop=most), evaluator)
    found = search.run()
    best = frontier.within_error(most / slope / factor)
    if best is None:
        assert not search.met(found) and found.point == frontier.sizes.size - 1
        return
    assert search.met(found) and drop_of(found.effect) <= most
    assert found.effect.size <= 1.08 * (HEADERS + frontier.sizes[best])
    assert len(evaluator.tried) <= MOST_TRIALS


def test_what_cannot_be_met_gives_the_nearest():
    options = layers()
    search = Search(find_frontier(options), "kl", Goal(max_drop=0.5), Formula(options, base=1.0))
    found = search.run()
    assert not search.met(found)
    assert drop_of(found.effect) == min(drop_of(trial.effect) for trial in search.trials)


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_a_size_is_kept_with_headers_and_all(share, seed):
    options = layers(seed=seed)
    frontier = find_frontier(options)
    smallest, largest = (HEADERS + int(frontier.sizes[i]) for i in (0, -1))
    most = int(smallest + share * (largest - smallest))
    search = Search(frontier, "kl", Goal(max_size=most), Formula(options))
    found = search.run()
    assert search.met(found) and found.effect.size <= most
    assert found.predicted == frontier.errors[frontier.within_size(most - HEADERS)]


def test_a_size_below_everything_gives_the_smallest():
    options = layers()
    search = Search(find_frontier(options), "kl", Goal(max_size=10), Formula(options))
    found = search.run()
    assert not search.met(found) and found.point == 0


def test_noise_that_hides_the_drop_does_not_drive_the_search():
    """Where no decision changed on the held-out samples, the divergence still says how far."""
    options = layers()

    class Blind(Formula):
        def trial(self, chosen):
            return replace(super().trial(chosen), drop=0.0, drop_error=0.0)

    search = Search(find_frontier(options), "kl", Goal(max_drop=0.5), Blind(options))
    found = search.run()
    assert search.met(found) and found.effect.error < 0.04


@pytest.mark.parametrize("measure", ["kl", "error"])
def test_goals(measure):
    effect = Effect(1, 0.01, 0.0 if measure == "kl" else None)
    drop = expected_drop(effect, POINTS_PER_NAT)
    assert allowed_error(drop, measure) == pytest.approx(effect.error)
    assert drop_of(Effect(1, 0.01)) == pytest.approx(10.0)
    assert goal_of(Recipe(max_size=0.25), 4000, measure) == Goal(max_size=1000)
    assert goal_of(Recipe(max_size=300), 4000, measure) == Goal(max_size=300)
    assert goal_of(Recipe(max_drop=2.0), 4000, measure) == Goal(max_drop=2.0)
    assert goal_of(Recipe(codebook="auto"), 4000, measure).max_drop in (0.5, 5.0)


def test_the_clock_ends_a_search_with_the_best_so_far():
    options = layers()
    evaluator = Formula(options, factor=0.2)
    evaluator.most_trials = 2
    search = Search(find_frontier(options), "kl", Goal(max_drop=0.5), evaluator)
    found = search.run()
    assert search.cut_short and len(search.trials) == 2
    assert found in search.trials
