"""The frontier against every combination, and against itself with few points."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.search import goal
from onnxq.search.goal import find_frontier
from onnxq.search.table import Effect, Setting

EFFECTS = st.builds(Effect, size=st.integers(1, 60), error=st.integers(0, 40).map(float))
LAYERS = st.lists(
    st.lists(EFFECTS, min_size=1, max_size=4).map(
        lambda effects: {Setting(codebook=k): e for k, e in enumerate(effects, 2)}
    ),
    min_size=1,
    max_size=5,
)


def totals(layers, chosen):
    effects = [layer[setting] for layer, setting in zip(layers, chosen, strict=True)]
    return sum(e.size for e in effects), sum(e.error for e in effects)


@given(layers=LAYERS, size=st.integers(0, 320), error=st.integers(0, 220))
@settings(deadline=None)
def test_nothing_beats_the_frontier(layers, size, error):
    every = [totals(layers, chosen) for chosen in product(*layers)]
    frontier = find_frontier(layers)
    fits = [total for total in every if total[0] <= size]
    point = frontier.within_size(size)
    assert (point is None) == (not fits)
    if point is not None:
        assert frontier.errors[point] == min(e for _, e in fits)
    fits = [total for total in every if total[1] <= error]
    point = frontier.within_error(error)
    assert (point is None) == (not fits)
    if point is not None:
        assert frontier.sizes[point] == min(s for s, _ in fits)


@given(layers=LAYERS)
@settings(deadline=None)
def test_settings_add_up_to_their_point(layers):
    frontier = find_frontier(layers)
    assert (np.diff(frontier.sizes) > 0).all() and (np.diff(frontier.errors) < 0).all()
    for point in range(frontier.sizes.size):
        found = totals(layers, frontier.settings(point))
        assert found == (frontier.sizes[point], frontier.errors[point])


def test_a_thinned_frontier_is_nearly_as_good(monkeypatch):
    monkeypatch.setattr(goal, "POINTS", 4096)
    rng = np.random.default_rng(0)
    layers = []
    for size in rng.integers(1000, 100_000, 30):
        counts = [2, 4, 8, 16, 32, 64, 128, 256]
        errors = rng.uniform(0.5, 2) / np.square(counts)
        layers.append({
            Setting(codebook=k): Effect(int(size * np.log2(k)) // 8, float(e))
            for k, e in zip(counts, errors, strict=True)
        })  # fmt: skip
    thinned = find_frontier(layers)
    monkeypatch.setattr(goal, "POINTS", 10**6)
    exact = find_frontier(layers)
    assert exact.sizes.size > 4096 >= thinned.sizes.size
    for share in np.linspace(0.2, 0.9, 8):
        size = int(exact.sizes[0] + share * (exact.sizes[-1] - exact.sizes[0]))
        best = exact.errors[exact.within_size(size)]
        assert thinned.errors[thinned.within_size(size)] <= 1.02 * best
