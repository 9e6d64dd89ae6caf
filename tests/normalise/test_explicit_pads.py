from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxq.load.interface import input_specs, random_feeds
from onnxq.load.read import run_model
from onnxq.normalise.spatial import MakePadsExplicit

MODES = ["SAME_UPPER", "SAME_LOWER", "VALID"]


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolutions(graph, applies, mode, stride):
    model = graph(
        "(float[N,2,7,8] x, float[a,b,c,d] w) => (float y)",
        f'y = Conv<auto_pad="{mode}", strides=[{stride},{stride}]>(x, w)',
        w=_weights(3, 2, 3, 4),
    )
    changed = applies(MakePadsExplicit(), model)
    assert "auto_pad" not in changed.graph[0].attributes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools(graph, applies, mode, op):
    model = graph(
        "(float[N,2,7,8] x) => (float y)",
        f'y = {op}<auto_pad="{mode}", kernel_shape=[3,2], strides=[2,2]>(x)',
    )
    applies(MakePadsExplicit(), model)


@pytest.mark.parametrize("mode", MODES)
def test_transposed_convolutions(graph, applies, mode):
    model = graph(
        "(float[N,2,7,8] x, float[a,b,c,d] w) => (float y)",
        f'y = ConvTranspose<auto_pad="{mode}", strides=[2,2]>(x, w)',
        w=_weights(2, 3, 3, 3),
    )
    applies(MakePadsExplicit(), model)


def test_stride_one_needs_no_size(graph, applies):
    model = graph(
        "(float[N,2,H,W] x, float[a,b,c,d] w) => (float y)",
        'y = Conv<auto_pad="SAME_UPPER">(x, w)',
        w=_weights(3, 2, 3, 3),
    )
    changed = applies(MakePadsExplicit(), model)
    assert list(changed.graph[0].attributes["pads"].as_ints()) == [1, 1, 1, 1]


def test_refuses_explicit_pads_and_unknown_sizes(graph, refuses):
    explicit = graph(
        "(float[N,2,7,8] x, float[a,b,c,d] w) => (float y)",
        "y = Conv<pads=[1,1,1,1]>(x, w)",
        w=_weights(3, 2, 3, 3),
    )
    refuses(MakePadsExplicit(), explicit)
    unknown = graph(
        "(float[N,2,H,W] x, float[a,b,c,d] w) => (float y)",
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)',
        w=_weights(3, 2, 3, 3),
    )
    refuses(MakePadsExplicit(), unknown)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER"]),
)
def test_any_convolution_keeps_its_outputs(graph, size, kernel, stride, mode):
    model = graph(
        f"(float[N,1,{size}] x, float[a,b,c] w) => (float y)",
        f'y = Conv<auto_pad="{mode}", strides=[{stride}]>(x, w)',
        w=_weights(1, 1, kernel),
    )
    result = MakePadsExplicit()(model.clone())
    changed = result.model
    assert result.modified or stride > kernel + 1
    feeds = [random_feeds(input_specs(model), 2)]
    expected = run_model(model, feeds, optimise=False)[0][0]
    found = run_model(changed, feeds, optimise=False)[0][0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
