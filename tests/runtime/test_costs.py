"""Costs are counted by stage, in forward passes of the samples through the float model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.engine import Engine
from onnxq.runtime.costs import Costs, count_for, current_costs, stage
from onnxq.runtime.session import SessionPool, expose

SAMPLES = 20


@pytest.fixture
def model() -> ir.Model:
    """Two layers: the second has three times the multiplications of the first."""
    return ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8] x, float[8, 4] v, float[4, 24] w) => (float[N, 24] y, float loss) {
          [first] h = MatMul (x, v)
          [second] y = MatMul (h, w)
          [sum] loss = ReduceSum <keepdims: int = 0> (y)
        }"""
    )


@pytest.fixture
def costs(model: ir.Model) -> Costs:
    for node in model.graph:
        for value in node.outputs:
            value.shape = ir.Shape(["N", {"h": 4, "y": 24}.get(str(value.name), 1)])
    found = Costs()
    found.set_model(model, SAMPLES, None)
    return found


def feeds(rows: int) -> dict[str, np.ndarray]:
    shapes = {"x": (rows, 8), "v": (8, 4), "w": (4, 24)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def passes(costs: Costs) -> dict[str, float]:
    return {row.stage: row.passes for row in costs.rows() if row.passes}


def test_all_samples_once_through_the_model_are_one_pass(model: ir.Model, costs: Costs) -> None:
    with costs.running():
        pool = SessionPool(model, ["y"])
        with stage("calibrate"):
            list(pool.map(feeds(5) for _ in range(SAMPLES // 5)))
    assert passes(costs) == {"calibrate": 1.0}


def test_a_part_of_the_model_is_its_share_of_a_pass(model: ir.Model, costs: Costs) -> None:
    part = expose(model, ["h"])
    for node in list(part.graph)[:0:-1]:
        part.graph.remove(node)
    with costs.running(), stage("calibrate"):
        SessionPool(part).run(feeds(SAMPLES))
    assert passes(costs)["calibrate"] == pytest.approx(32 / (32 + 96 + 1))


def test_a_backward_pass_counts_as_two(model: ir.Model, costs: Costs) -> None:
    with costs.running():
        engine = Engine(model, ["v", "w"])
        with stage("learn"):
            given = feeds(SAMPLES)
            engine.gradients(given, [{"x": given["x"][:12]}, {"x": given["x"][12:]}])
    assert passes(costs) == {"learn": 3.0}


def test_an_inner_stage_counts_for_itself_alone() -> None:
    times = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    costs = Costs(lambda: next(times))
    with costs.stage("forms"), costs.stage("calibrate"):
        pass
    found = {row.stage: row.seconds for row in costs.rows()}
    assert found == {"other": 1.0 + 16.0, "forms": 2.0 + 8.0, "calibrate": 4.0}


def test_runs_are_counted_apart_and_not_after_they_end(model: ir.Model, costs: Costs) -> None:
    with costs.running():
        pool = SessionPool(model, ["y"])
        with Costs().running():
            SessionPool(model, ["y"]).run(feeds(SAMPLES))
    assert current_costs() is None
    SessionPool(model, ["y"]).run(feeds(SAMPLES))
    assert passes(costs) == {}
    pool.run(feeds(SAMPLES))
    assert passes(costs) == {"other": 1.0}


def test_a_session_that_a_thread_of_a_pool_opens_is_counted(model: ir.Model, costs: Costs) -> None:
    with (
        costs.running(),
        ThreadPoolExecutor(1, initializer=count_for, initargs=(current_costs(),)) as executor,
    ):
        executor.submit(lambda: SessionPool(model, ["y"]).run(feeds(SAMPLES))).result()
    assert passes(costs) == {"other": 1.0}
