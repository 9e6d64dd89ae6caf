"""Blocked convolutions give the loss and the gradients of plain ones."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.engine import Engine, blocked
from onnxq.options.table import EngineName

FORMS = {
    "plain": (32, 16, 3, ""),
    "no padding": (16, 32, 3, "pads=[0,0,0,0]"),
    "pointwise": (32, 16, 1, "pads=[0,0,0,0]"),
    "asymmetric": (16, 16, 3, "pads=[0,1,2,1]"),
    "stride": (16, 32, 3, "strides=[2,2]"),
    "wide": (16, 16, 5, "pads=[2,2,2,2]"),
    "depthwise": (32, 1, 3, "group=32"),
    "depthwise stride": (32, 1, 3, "group=32, strides=[2,2]"),
}
OTHERS = {
    "odd channels": (24, 12, 3, ""),
    "dilated": (16, 16, 3, "dilations=[2,2]"),
    "grouped": (32, 16, 3, "group=2"),
    "one-dimensional": (16, 16, None, "pads=[1,1]"),
}


def student(outputs: int, depth: int, size: int | None, attributes: str, bias: bool) -> ir.Model:
    inputs = outputs if depth == 1 else depth * (2 if "group=2" in attributes else 1)
    weights, image = (
        (f"{outputs},{depth},3", "9")
        if size is None
        else (
            f"{outputs},{depth},{size},{size}",
            "9,7",
        )
    )
    pads = "" if "pads" in attributes else "pads=[1,1,1,1]"
    listed = ", ".join(text for text in (attributes, pads) if text)
    return ir.from_onnx_text(
        f"""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[N,{inputs},{image}] x, float[{weights}] W, float[{outputs}] B) => (float loss) {{
          a = Neg(x)
          y = Conv<{listed}>(a, W{", B" if bias else ""})
          s = Mul(y, y)
          loss = ReduceSum<keepdims=0>(s)
        }}
        """
    )


def values(model: ir.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {v.name: [d if isinstance(d, int) else 2 for d in v.shape] for v in model.graph.inputs}
    return {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def gradients(model: ir.Model, trainable: tuple[str, ...], kernels: EngineName = "auto"):
    feeds = values(model)
    others = {name: value for name, value in feeds.items() if name not in trainable}
    engine = Engine(model, trainable, workers=1, kernels=kernels)
    return engine.gradients({name: feeds[name] for name in trainable}, [others])


@pytest.mark.parametrize("trainable", [("x", "W", "B"), ("x", "W"), ("x",), ("W",), ("x", "B")])
@pytest.mark.parametrize("form", FORMS)
def test_same_as_plain(form, trainable, monkeypatch):
    model = student(*FORMS[form], bias=True)
    loss, found = gradients(model, trainable)
    monkeypatch.setattr(blocked, "block_size", lambda: None)
    plain_loss, expected = gradients(model, trainable)
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for name in trainable:
        scale = np.abs(expected[name]).max()  # another order of summation
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale)


@pytest.mark.parametrize("form", OTHERS)
def test_other_forms_stay_with_the_plain_kernels(form, monkeypatch):
    blocked.block_size()  # tries the kernels once
    monkeypatch.setattr(blocked, "forward", lambda *_: pytest.fail("blocked"))
    gradients(student(*OTHERS[form], bias=False), ("x", "W"))


@pytest.mark.parametrize("form", FORMS)
def test_blocked_kernels_are_really_used(form, monkeypatch):
    if blocked.block_size() is None:
        pytest.skip("this machine has no blocked kernels")
    monkeypatch.setattr(blocked, "forward", lambda *_: pytest.fail("blocked"))
    with pytest.raises(pytest.fail.Exception, match="blocked"):
        gradients(student(*FORMS[form], bias=False), ("x", "W"))


def test_layers_of_one_form_and_several_sizes_stay_apart():
    model = ir.from_onnx_text(
        """
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[N,16,8,8] x, float[32,16,3,3] W, float[64,32,3,3] V) => (float loss) {
          y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, W)
          z = Conv<pads=[1,1,1,1], strides=[2,2]>(y, V)
          loss = ReduceSum<keepdims=0>(z)
        }
        """
    )
    _, found = gradients(model, ("x", "W", "V"))
    assert found["V"].shape == (64, 32, 3, 3)


def test_block_size_is_one_of_the_known_ones_or_none():
    assert blocked.block_size() in (16, 8, None)


@pytest.mark.parametrize("form", [*FORMS, *OTHERS])
def test_standard_operators_give_the_gradients_of_the_kernels(form, monkeypatch):
    model = student(*(FORMS | OTHERS)[form], bias=True)
    loss, expected = gradients(model, ("x", "W", "B"))
    monkeypatch.setattr(blocked, "block_size", lambda: None)
    plain_loss, found = gradients(model, ("x", "W", "B"), "onnx")
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for name, gradient in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient, expected[name], atol=1e-5 * scale)


@pytest.mark.parametrize("kernels", ["auto", "onnx"])
@pytest.mark.parametrize("form", ["plain", "stride", "depthwise stride"])
def test_sizes_may_be_free(form, kernels, monkeypatch):
    model = student(*FORMS[form], bias=False)
    feeds = values(model)
    _, expected = gradients(model, ("W",))
    [x, *_] = model.graph.inputs
    x.shape = ir.Shape(["N", x.shape[1], "H", "W"])
    if kernels == "onnx":
        monkeypatch.setattr(blocked, "block_size", lambda: None)
    scaled = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 13]>
        g (float[N,{x.shape[1]},H,W] x, float k, float[{",".join(map(str, feeds["W"].shape))}] W)
        => (float loss) {{
          a = Mul(x, k)
          y = Conv<{FORMS[form][3] or "strides=[1,1]"}, pads=[1,1,1,1]>(a, W)
          s = Mul(y, y)
          loss = ReduceSum<keepdims=0>(s)
        }}"""
    )
    given = {"k": np.float32(-1), "W": feeds["W"]}
    engine = Engine(scaled, ("k", "W"), workers=1, kernels=kernels)
    loss, found = engine.gradients(given, [{"x": feeds["x"]}])
    scale = np.abs(expected["W"]).max()
    np.testing.assert_allclose(found["W"], expected["W"], atol=1e-5 * scale)
    # loss = k² c, so its gradient is 2 loss / k.
    np.testing.assert_allclose(found["k"], -2 * loss, rtol=1e-4)
