"""Gradients against central differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.engine import Engine, ungradable_nodes
from onnxq.options.table import EngineName
from onnxq.runtime.session import open_session

STEP = 2e-3


@dataclass
class Case:
    """y = some nodes of the inputs; integers and constants go in as initializers."""

    body: str
    shapes: dict[str, tuple[int, ...]]
    constants: str = ""
    opsets: tuple[int, ...] = (13, 17, 21)
    positive: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.body


def values(shape: tuple[int, ...], seed: int, positive: bool) -> np.ndarray:
    """Distinct values between -3.2 and 3.2 that keep away from multiples of a tenth."""
    size = int(np.prod(shape))
    spacing = 0.1 if size <= 64 else 6.4 / size
    order = np.random.default_rng(seed).permutation(size)
    grid = (order - size // 2) * spacing + spacing / 2
    grid = np.abs(grid) * 0.3 + 0.5 if positive else grid
    return grid.reshape(shape).astype(np.float32)


def model_of(case: Case, opset: int, output: tuple[int, ...] | None) -> ir.Model:
    def declare(name: str, shape: tuple[int, ...]) -> str:
        # ONNX text writes a scalar as `float` and an unknown shape as `float[]`.
        return f"float[{','.join(map(str, shape))}] {name}" if shape else f"float {name}"

    inputs = [declare(name, shape) for name, shape in case.shapes.items()]
    outputs, tail = "float[] y", ""
    if output is not None:
        inputs.append(declare("w", output))
        outputs = f"float loss, {declare('y', output)}"
        tail = "weighted = Mul(y, w) loss = ReduceSum<keepdims=0>(weighted)"
    version = 8 if opset < 19 else 10
    return ir.from_onnx_text(
        f'<ir_version: {version}, opset_import: ["" : {opset}]> '
        f"g ({', '.join(inputs)}) => ({outputs}) "
        f"{f'<{case.constants}>' if case.constants else ''} {{ {case.body} {tail} }}"
    )


def check(
    case: Case, opset: int, trainable: tuple[str, ...] | None = None, kernels: EngineName = "auto"
) -> None:
    feeds = {
        name: values(shape, seed, name in case.positive)
        for seed, (name, shape) in enumerate(case.shapes.items())
    }
    forward = open_session(model_of(case, opset, None))
    y = forward.run(["y"], feeds)[0]
    w = np.random.default_rng(9).normal(size=y.shape).astype(np.float32)
    model = model_of(case, opset, y.shape)
    names = trainable or tuple(feeds)
    assert ungradable_nodes(model, names) == []
    engine = Engine(model, names, workers=1, kernels=kernels)
    others = {k: v for k, v in feeds.items() if k not in names}
    _, gradients = engine.gradients({k: feeds[k] for k in names}, [{"w": w, **others}])
    for name in names:
        numeric = central_differences(forward, feeds, name, w)
        assert gradients[name].shape == feeds[name].shape
        tolerance = 5e-3 * (np.abs(numeric).max() + 0.1)  # float32 differences over 4e-3
        np.testing.assert_allclose(gradients[name], numeric, atol=tolerance, err_msg=name)


def central_differences(forward, feeds, name, w) -> np.ndarray:
    result = np.zeros(feeds[name].size)
    for index in range(result.size):
        losses = []
        for sign in (1, -1):
            moved = feeds[name].copy()
            moved.flat[index] += sign * STEP
            y = forward.run(["y"], {**feeds, name: moved})[0]
            losses.append((y.astype(np.float64) * w).sum())
        result[index] = (losses[0] - losses[1]) / (2 * STEP)
    return result.reshape(feeds[name].shape)
