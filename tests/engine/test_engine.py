"""The engine's contract: sums, determinism, sharing, refusals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.engine import Engine, describe_engine, resolve_engine, ungradable_nodes
from onnxq.engine import kernels as kernels_module
from onnxq.engine.kernels import has_training_kernels
from onnxq.engine.reverse import gradient_graph
from onnxq.errors import EngineError

STUDENT = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[N,3,6,6] x, float[N,4] target, float[8,3,3,3] W, float[8] B, float[4,8] V, float unused)
=> (float loss, float[N,4] logits) {
  c = Conv<pads=[1,1,1,1]>(x, W, B)
  r = Relu(c)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  logits = Gemm<transB=1>(f, V)
  d = Sub(logits, target)
  q = Mul(d, d)
  loss = ReduceSum<keepdims=0>(q)
}
"""


@pytest.fixture
def parameters():
    rng = np.random.default_rng(0)
    shapes = {"W": (8, 3, 3, 3), "B": (8,), "V": (4, 8), "unused": ()}
    return {k: np.asarray(rng.normal(size=v), np.float32) for k, v in shapes.items()}


@pytest.fixture
def shards():
    rng = np.random.default_rng(1)
    return [
        {
            "x": rng.normal(size=(n, 3, 6, 6)).astype(np.float32),
            "target": rng.normal(size=(n, 4)).astype(np.float32),
        }
        for n in (8, 8, 3)
    ]


def engine(trainable=("W", "B", "V", "unused"), **options):
    return Engine(ir.from_onnx_text(STUDENT), trainable, **options)


def test_the_same_bytes_on_one_and_on_two_workers(parameters, shards):
    one, two = (engine(workers=n).gradients(parameters, shards) for n in (1, 2))
    assert one[0] == two[0]
    for name, gradient in one[1].items():
        assert gradient.tobytes() == two[1][name].tobytes()


def test_shards_add_up(parameters, shards):
    student = engine(workers=1)
    loss, gradients = student.gradients(parameters, shards)
    parts = [student.gradients(parameters, [shard]) for shard in shards]
    assert loss == sum(part[0] for part in parts)
    for name, gradient in gradients.items():
        expected = np.sum([part[1][name] for part in parts], axis=0, dtype=np.float64)
        np.testing.assert_array_equal(gradient, expected.astype(np.float32))
        assert gradient.shape == parameters[name].shape
        assert gradient.dtype == np.float32


def test_an_input_that_the_loss_ignores_has_gradient_zero(parameters, shards):
    _, gradients = engine().gradients(parameters, shards)
    assert gradients["unused"].shape == ()
    assert gradients["unused"] == 0


def test_parameters_changed_in_place_are_seen(parameters, shards):
    student = engine(workers=1)
    before, gradients = student.gradients(parameters, shards)
    for name, gradient in gradients.items():
        parameters[name] -= 1e-6 * gradient
    after, _ = student.gradients(parameters, shards)
    slope = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values())
    assert before - after == pytest.approx(1e-6 * slope, rel=0.05)


def test_scalars_that_are_no_arrays_stay_alive(shards):
    text = STUDENT.replace("float unused", "float gain").replace(
        "r = Relu(c)", "a = Relu(c) r = Mul(a, gain)"
    )
    rng = np.random.default_rng(2)
    fixed = {k: rng.normal(size=s).astype(np.float32) for k, s in (("B", 8), ("V", (4, 8)))}
    weights = {"W": rng.normal(size=(8, 3, 3, 3)).astype(np.float32)}
    student = Engine(ir.from_onnx_text(text), ["W"], workers=1)
    losses = {
        student.gradients(weights, [{**shards[0], **fixed, "gain": np.float32(1.5)}])[0]
        for _ in range(5)
    }
    assert len(losses) == 1


def test_extra_outputs_come_per_shard(parameters, shards):
    student = engine(extra_outputs=["logits"], workers=2)
    loss, _ = student.gradients(parameters, shards)
    assert [extra["logits"].shape for extra in student.extras] == [(8, 4), (8, 4), (3, 4)]
    pairs = zip(student.extras, shards, strict=True)
    errors = [((extra["logits"] - shard["target"]) ** 2).sum() for extra, shard in pairs]
    assert loss == pytest.approx(sum(errors), rel=1e-4)


def test_shards_with_parameters_of_their_own_stand_alone(parameters, shards):
    student = engine(trainable=("W", "unused"), extra_outputs=["logits"], workers=2)
    other = {**parameters, "W": 2 * parameters["W"]}
    full = [{**shard, **own} for shard, own in zip(shards, (parameters, other), strict=False)]
    found = student.each(full)
    assert len(found) == 2
    for shard, (outputs, gradients) in zip(full, found, strict=True):
        loss, alone = student.gradients(shard, [shard])
        assert float(outputs["loss"]) == loss
        assert outputs["logits"].shape == (8, 4)
        assert list(gradients) == ["W"]
        np.testing.assert_array_equal(gradients["W"], alone["W"])


def test_the_model_is_not_changed(parameters):
    model = ir.from_onnx_text(STUDENT)
    before = ir.to_proto(model).SerializeToString()
    Engine(model, ["W"])
    assert ir.to_proto(model).SerializeToString() == before


def test_nothing_is_printed(capfd):
    engine()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("trainable", "options", "sentence"),
    [
        (["nope"], {}, "the trainable input 'nope' is not an input of the graph"),
        (["W"], {"loss": "cost"}, "the graph has no output 'cost'"),
        (["unused"], {}, "the loss 'loss' depends on none of the 1 trainable inputs"),
    ],
)
def test_refusals(trainable, options, sentence):
    with pytest.raises(EngineError, match=sentence):
        engine(trainable, **options)


def test_a_node_without_gradient_is_named():
    model = ir.from_onnx_text(STUDENT.replace("r = Relu(c)", "e = LRN<size=3>(c) r = Relu(e)"))
    model.graph.node(1).name = "mixer"
    with pytest.raises(EngineError, match=r"no gradient passes the node 'mixer' \(LRN\)"):
        Engine(model, ["W"])
    Engine(model, ["V"])


def operators(kernels):
    whole, _ = gradient_graph(
        ir.from_onnx_text(STUDENT), ["W"], "loss", [], resolve_engine(kernels) == "ort-training"
    )
    return {node.op_type for node in whole.graph}


def test_the_standard_operators_run_where_they_are_asked_for():
    assert not {"ConvGrad", "ReluGrad"} & operators("onnx")
    assert ("ConvGrad" in operators("auto")) == has_training_kernels()


@pytest.mark.parametrize(
    ("node", "kernel"),
    [
        ("Softmax(x)", "SoftmaxGrad_13"),
        ("Softmax<axis=2>(x)", "SoftmaxGrad_13"),
        ("Softmax<axis=1>(x)", None),
        ("LayerNormalization(x, s)", "LayerNormalizationGrad"),
        ("LayerNormalization<axis=1>(x, s)", None),
        ("MaxPool<kernel_shape=[2]>(x)", None),
    ],
)
def test_kernels_are_taken_where_they_are_right_and_faster(node, kernel):
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,4] x, float[4] s) => (float loss)
        {{ y = {node} z = Mul(y, y) loss = ReduceSum<keepdims=0>(z) }}"""
    )
    whole, _ = gradient_graph(model, ["x"], "loss", [], True)
    kernels = {each.op_type for each in whole.graph if each.domain == "com.microsoft"}
    assert kernels == ({kernel} if kernel else set())


@pytest.mark.parametrize("replaced", [True, False])
def test_an_absent_build_is_one_sentence_where_it_is_asked_for(replaced, monkeypatch):
    def version(name):
        if replaced:
            return "1.19.2"
        raise kernels_module.metadata.PackageNotFoundError

    monkeypatch.setattr(kernels_module.metadata, "version", version)
    monkeypatch.setattr(kernels_module, "has_training_kernels", lambda: False)
    remedy = "pip uninstall -y onnxruntime" if replaced else "on Python 3.11 or 3.12"
    with pytest.raises(EngineError, match=remedy) as caught:
        resolve_engine("ort-training")
    assert "pip install onnxruntime-training-cpu==1.19.2" in str(caught.value)
    assert resolve_engine("auto") == resolve_engine("onnx") == "onnx"
    described = describe_engine("auto")
    assert described.startswith("onnx (standard operators, ONNX Runtime ")
    assert ("has replaced the files of onnxruntime-training-cpu" in described) == replaced


def test_a_max_pool_of_an_unknown_size():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]> g (float[N,1,H,4] x, float w) => (float loss) {
  a = Mul(x, w)
  p = MaxPool<kernel_shape=[2,2]>(a)
  loss = ReduceSum<keepdims=0>(p)
}"""
    )
    x = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    _, gradients = Engine(model, ["w"], workers=1).gradients({"w": np.float32(1)}, [{"x": x}])
    assert gradients["w"] == x[:, :, 1:, 1:].sum()


NODES = {
    'y = AveragePool<kernel_shape=[3,3], auto_pad="SAME_LOWER">(x)': ("AveragePool", "auto_pad"),
    'y = Einsum<equation="nccw->nw">(x)': ("Einsum", "diagonal"),
    'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, c, r)': (
        "Resize",
        "a part of the image",
    ),
    "y = LRN<size=3>(x)": ("LRN", "no gradient is known"),
    'y = ScatterElements<reduction="mul">(x, i, x)': ("ScatterElements", "reduction 'mul'"),
    "y = BatchNormalization<training_mode=1>(x, v, v, v, v)": (
        "BatchNormalization",
        "training mode",
    ),
    "y = If<then_branch = t () => (a) {a = Neg(x)}, else_branch = e () => (b) {b = Abs(x)}>(k)": (
        "If",
        "sub-graphs",
    ),
}


@pytest.mark.parametrize("node", NODES)
def test_ungradable_nodes(node):
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 17]> '
        "g (float[2,4,4,4] x0, float[4,4,3,3] W) => (float[] y) "
        "<float[4] r = {1,1,2,2}, int64[1,1,1,1] i = {0}, float[8] c = {0,0,0,0,1,1,1,1},"
        " float[4] v = {1,1,1,1}, bool k = {1}> "
        f"{{ x = Relu(x0) {node} }}"
    )
    op_type, reason = NODES[node]
    found = ungradable_nodes(model, ["x0", "W"])
    assert [entry[1] for entry in found] == [op_type]
    assert reason in found[0][2]
    assert ungradable_nodes(model, ["W"]) == []


def test_recurrent_layers_are_ungradable_only_on_the_way():
    model = ir.from_onnx_text(
        """
        <ir_version: 8, opset_import: ["" : 14]>
        g (float[4,2,3] x, float[1,9,3] W, float[1,9,3] R, float[3,5] V) => (float[] y) {
          h = GRU<hidden_size=3>(x, W, R)
          y = MatMul(h, V)
        }
        """
    )
    assert [entry[1] for entry in ungradable_nodes(model, ["W"])] == ["GRU"]
    assert ungradable_nodes(model, ["V"]) == []


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_a_pool_has_a_gradient_where_the_batch_is_free(pool: str) -> None:
    """AveragePoolGrad takes its shape from the graph, where a free batch counts as 0."""
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["":13]> g (float[N,1,4,4] x, float w) => (float loss) {{
  a = Mul(x, w)
  p = {pool}<kernel_shape=[2,2], strides=[2,2]>(a)
  q = Mul(p, p)
  loss = ReduceSum<keepdims=0>(q)
}}"""
    )
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4) / 10
    engine = Engine(model, ["w"], workers=1)
    loss, gradients = engine.gradients({"w": np.float32(1.5)}, [{"x": x}])
    # loss = w² c, so its gradient is 2 loss / w.
    np.testing.assert_allclose(gradients["w"], 2 * loss / 1.5, rtol=1e-5)


def test_shapes_that_are_broadcast_may_be_unknown():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]>
g (float[A,B] a, float[C,D] b, float[E] c) => (float loss) {
  s = Mul(a, b)
  t = Add(s, c)
  q = Mul(t, t)
  loss = ReduceSum<keepdims=0>(q)
}"""
    )
    random = np.random.default_rng(0)
    shapes = {"a": (3, 4), "b": (3, 1), "c": (1,)}
    values = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    _, found = Engine(model, ["a", "b", "c"], workers=1).gradients(values, [{}])
    outer = 2 * (values["a"] * values["b"] + values["c"])
    np.testing.assert_allclose(found["a"], outer * values["b"], rtol=1e-5)
    summed = (outer * values["a"]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["b"], summed, rtol=1e-4)
    np.testing.assert_allclose(found["c"], [outer.sum()], rtol=1e-4)


def test_many_readers_of_one_value_add_up():
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["":13]> g (float[3] x) => (float loss) {
  a = Mul(x, x)
  b = Mul(a, x)
  c = Add(a, b)
  d = Sub(c, x)
  loss = ReduceSum<keepdims=0>(d)
}"""
    )
    x = np.array([0.5, -1, 2], np.float32)
    _, found = Engine(model, ["x"], workers=1).gradients({"x": x}, [{}])
    np.testing.assert_allclose(found["x"], 2 * x + 3 * x**2 - 1, rtol=1e-6)
