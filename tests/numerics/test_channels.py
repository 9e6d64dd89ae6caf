"""Channels that mean different things are told from channels that are merely seldom used."""

import numpy as np
import pytest

from onnxq.numerics.channels import ChannelSums

RNG = np.random.default_rng(0)
BOXES = RNG.uniform(5, 300, (6, 4, 50))
SCORES = RNG.beta(0.02, 1, (6, 9, 50)) * np.logspace(-4, 0, 9)[:, None]


def summed(*batches: np.ndarray) -> ChannelSums:
    sums = ChannelSums()
    for batch in batches:
        sums.add(batch)
    return sums


@pytest.mark.parametrize("axis", [1, 2])
def test_boxes_in_pixels_beside_scores(axis):
    joined = np.moveaxis(np.concatenate([BOXES, SCORES], 1), 1, axis)
    groups = summed(joined[:2], joined[2:]).groups()
    assert groups is not None
    assert groups.axis == axis
    assert groups.larger.tolist() == [True] * 4 + [False] * 9
    assert groups.shape == tuple(13 if i == axis else 1 for i in range(3))


@pytest.mark.parametrize(
    "values",
    [
        SCORES,
        np.concatenate([SCORES, np.zeros((6, 3, 50))], 1),
        BOXES,
        RNG.normal(size=(6, 20, 30)) * np.linspace(0.05, 3, 20)[:, None],
        RNG.normal(size=(6, 20)) * np.logspace(0, 4, 20),
    ],
    ids=["scores, some unseen", "dead channels", "boxes", "features", "a matrix"],
)
def test_one_meaning(values):
    assert summed(values).groups() is None


def test_sizes_that_vary_are_no_channels():
    joined = np.concatenate([BOXES, SCORES], 1)
    assert summed(joined, joined[:, :10]).groups() is None
    assert summed(joined, joined[:, :, :7]).groups() is not None


def test_sums_of_the_groups():
    joined = np.concatenate([BOXES, SCORES], 1)
    sums = summed(joined[:3], joined[3:])
    groups = sums.groups()
    assert groups is not None
    larger, smaller = groups.sums(sums.squares(groups.axis))
    np.testing.assert_allclose([larger, smaller], [(BOXES**2).sum(), (SCORES**2).sum()])
