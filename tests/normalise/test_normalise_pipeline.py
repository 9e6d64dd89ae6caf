from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import ModelError, OnnxqError, PassError
from onnxq.load.model import load_model
from onnxq.normalise import pipeline
from onnxq.normalise.pipeline import normalise


def _ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _network(graph) -> ir.Model:
    generator = np.random.default_rng(0)
    return graph(
        "(float[1,3,8,8] x, float[a,b,c,d] w, float[e] g, float[h,i,j,k] head, float low, "
        "float high) => (float[1,5] y)",
        "i = Identity(x) "
        'c = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(i, w) '
        "n = BatchNormalization(c, g, g, g, g) r = Clip(n, low, high) "
        "o = Conv(r, head) m = ReduceMean<axes=[2,3]>(o) y = Flatten(m)",
        w=generator.standard_normal((4, 3, 3, 3)),
        g=generator.uniform(0.5, 1.5, 4),
        head=generator.standard_normal((5, 4, 1, 1)),
        low=np.float32(0),
        high=np.float32(np.inf),
    )


def test_a_network_from_top_to_bottom(graph):
    model = _network(graph)
    before = ir.to_proto(model).SerializeToString()
    result = normalise(model)
    tail = ["GlobalAveragePool", "Flatten", "Gemm"]
    assert _ops(result.model) == ["Conv", "Relu", *tail]
    assert _ops(result.unfolded) == ["Conv", "BatchNormalization", "Relu", *tail]
    assert result.batch_free and result.notes == []
    check_names_and_shapes(result.model)
    assert ir.to_proto(model).SerializeToString() == before
    check_names_and_shapes(result.model)
    check_names_and_shapes(result.unfolded)


def test_normalising_twice_changes_nothing(graph):
    once = normalise(_network(graph)).model
    assert _ops(normalise(once).model) == _ops(once)


class _Breaks:
    """A pass that doubles the first bias it finds."""

    def __call__(self, model):
        for value in model.graph.initializers.values():
            if value.const_value.shape.rank() == 1 and value.const_value.numpy().dtype == "f4":
                value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)
                return pipeline.InferShapes()(model).__class__(model, modified=True)
        return pipeline.InferShapes()(model)


def test_a_pass_that_changes_the_outputs_is_named(graph, monkeypatch):
    monkeypatch.setattr(pipeline, "FINISH", (*pipeline.FINISH, _Breaks()))
    with pytest.raises(PassError, match=r'The pass "_Breaks" changes.*output "y" differs by'):
        normalise(_network(graph))


def test_a_batch_norm_that_stays_is_a_note(graph):
    model = graph(
        "(float[N,4] x, float[4] g) => (float[N,4] y)", "y = BatchNormalization(x, g, g, g, g)"
    )
    result = normalise(model, [{"x": np.ones((2, 4), np.float32), "g": np.ones(4, np.float32)}])
    assert 'The BatchNormalization "BatchNormalization_0" stays' in result.notes[-1]


def test_random_feeds_that_do_not_fit_are_a_note(graph):
    model = graph(
        "(float[N,M] x, float[a,b] w) => (float[N,5] y)", "y = MatMul(x, w)", w=np.ones((3, 5))
    )
    result = normalise(model)
    assert any("not compared" in note for note in result.notes)
    feeds = [{"x": np.ones((2, 3), dtype=np.float32)}]
    assert normalise(model, feeds).notes == []


def test_feeds_that_do_not_fit_are_a_users_error(graph):
    with pytest.raises(ModelError, match=r'does not run on inputs of "x" \[1, 4, 8, 8\]'):
        normalise(_network(graph), [{"x": np.zeros((1, 4, 8, 8), dtype=np.float32)}])


def test_sub_graphs_and_tree_operators_survive():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 13, "ai.onnx.ml" : 3]>
        g (float[N,4] x, bool c) => (float[N,4] y) {
            a = Identity(x)
            b = If(c) <then_branch = t () => (float[N,4] p) { p = Relu(a) },
                       else_branch = e () => (float[N,4] p) { q = Identity(a) p = Abs(q) }>
            y = ai.onnx.ml.Scaler<scale=[2.0], offset=[1.0]>(b)
        }"""
    )
    result = normalise(model, lambda n: {"x": np.eye(4, dtype=np.float32)[:n], "c": np.array(True)})
    assert _ops(result.model) == ["If", "Scaler"]


ZOO_FEEDS = {
    "oww_melspectrogram": lambda r, n: {"input": r.standard_normal((n, 1760)) * 1000},
    "sklearn_treecl": lambda r, n: {"input": r.standard_normal((n, 20))},
    "ppocr_mobile_det": lambda r, n: {"image": r.standard_normal((1, 3, 640, 640))},
    "silero_vad": lambda r, n: {
        "input": r.standard_normal((1, 512)) / 10,
        "state": np.zeros((2, 1, 128)),
        "sr": np.array(16000),
    },
}
ZOO_FEEDS["silero_vad_op18_ifless"] = ZOO_FEEDS["silero_vad"]


def _feeds(name: str, size: int) -> dict[str, np.ndarray]:
    arrays = ZOO_FEEDS[name](np.random.default_rng(0), size)
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}


def test_models_of_other_kinds_keep_their_outputs_or_say_why_not(assets: Path, subtests):
    refused = []
    for path in sorted((assets / "zoo").glob("*.onnx")):
        with subtests.test(path.stem):
            feeds = (lambda n, s=path.stem: _feeds(s, n)) if path.stem in ZOO_FEEDS else None
            try:
                result = normalise(load_model(path), feeds)
            except OnnxqError as error:
                assert isinstance(error, ModelError) and "\n" not in str(error)
                refused.append(path.stem)
                continue
            check_names_and_shapes(result.model)
            assert "BatchNormalization" not in _ops(result.model)
    assert refused == ["logreg_iris"]


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        (
            "cifar10_shufflenetv2_x0_5",
            {"Conv", "Relu", "Reshape", "Slice", "Concat", "Transpose"},
        ),
        ("cifar10_resnet20", {"Conv", "Relu", "Slice", "Pad", "Add"}),
        ("imagenet_mobilenet_v1_075_224", {"Conv", "Clip"}),
        ("imagenet_tiny_darknet", {"Conv", "LeakyRelu", "MaxPool"}),
    ],
)
def test_the_models_come_out_clean(assets: Path, name, ops):
    result = normalise(load_model(assets / "models" / f"{name}.onnx"))
    assert set(_ops(result.model)) == ops | {"GlobalAveragePool", "Flatten", "Gemm"}
    assert result.batch_free and result.notes == []
    for node in result.model.graph:
        shape = node.outputs[0].shape
        assert shape is not None and all(isinstance(d, int) for d in list(shape)[1:])


def check_names_and_shapes(model: ir.Model) -> None:
    """Unique, non-empty names; the checker passes; all initializers are used."""
    nodes = [node.name for node in model.graph.all_nodes()]
    values = [v.name for n in model.graph.all_nodes() for v in n.outputs if v.uses() or v.name]
    values += [v.name for v in [*model.graph.inputs, *model.graph.initializers.values()]]
    for names in (nodes, values):
        assert all(names) and len(set(names)) == len(names)
    assert all(v.uses() or v.is_graph_output() for v in model.graph.initializers.values())
    onnx.checker.check_model(ir.to_proto(model))
