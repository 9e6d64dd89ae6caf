"""Products with constant weights that are brought to the form of a layer."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.normalise.gemm import GemmToPlain
from onnxq.normalise.pipeline import normalise
from onnxq.normalise.products import EinsumToMatMul, LeftConstant, SqueezeWeight
from onnxq.normalise.transposes import MergeTransposes


def _ops(model) -> list[str]:
    return [node.op_type for node in model.graph]


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def _product(graph, data: str, body: str, weight, **more):
    names = "".join(f", float[{','.join('abcd'[: np.ndim(a)])}] {n}" for n, a in more.items())
    dims = ",".join("pqrs"[: np.ndim(weight)])
    return graph(f"(float{data} x, float[{dims}] w{names}) => (float y)", body, w=weight, **more)


@pytest.mark.parametrize(
    ("data", "shape", "operators"),
    [
        ("[N,4,3]", (5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[N,2,4,3]", (5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[4,N]", (5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[4]", (5, 4), ["MatMul"]),
        ("[N,4,3]", (1, 5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[2,4,3]", (2, 5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[4,N]", (2, 5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("[4]", (2, 5, 4), ["MatMul"]),
    ],
)
def test_a_constant_on_the_left_goes_to_the_right(graph, applies, data, shape, operators):
    changed = applies(LeftConstant(), _product(graph, data, "y = MatMul(w, x)", _weights(*shape)))
    assert _ops(changed) == operators
    product = next(node for node in changed.graph if node.op_type == "MatMul")
    assert product.name == "MatMul_0"
    assert tuple(product.inputs[1].shape) == (*shape[:-2], shape[-1], shape[-2])


def test_two_products_with_one_left_weight_share_its_transpose(graph, applies):
    body = "a = MatMul(w, x) r = Relu(a) y = MatMul(w, r)"
    changed = applies(LeftConstant(), _product(graph, "[N,4,3]", body, _weights(4, 4)))
    assert len(changed.graph.initializers) == 1


@pytest.mark.parametrize(
    ("data", "body", "shape"),
    [
        ("[N,4,3]", "y = MatMul(w, x)", (4,)),
        ("[N,4,5]", "y = MatMul(x, w)", (5, 4)),
        ("[N,5,4]", "a = MatMul(w, x) y = Add(w, a)", (5, 5)),
        ("[N,4]", "s = NonZero(x) u = Cast<to=1>(s) z = Squeeze(u) y = MatMul(w, z)", (5, 2)),
    ],
    ids=["vector", "right", "read by no layer", "rank not known"],
)
def test_a_left_operand_that_stays(graph, refuses, data, body, shape):
    refuses(LeftConstant(), _product(graph, data, body, _weights(*shape)))


@pytest.mark.parametrize(
    ("bias", "operators"),
    [
        (None, ["Gemm", "Transpose"]),
        (_weights(5, 1), ["Gemm", "Transpose"]),
        (_weights(), ["Gemm", "Transpose"]),
        (_weights(3), ["Gemm", "Transpose", "Add"]),
        (_weights(5, 3), ["Gemm", "Transpose", "Add"]),
    ],
)
@pytest.mark.parametrize("turned", [0, 1])
def test_gemm_with_its_weights_first(graph, applies, bias, operators, turned):
    given = {} if bias is None else {"c": bias}
    body = f"y = Gemm<transA={turned}, transB={turned}, alpha=0.5, beta=2.0>(w, x"
    body += ", c)" if given else ")"
    weight, data = (_weights(4, 5), "[3,4]") if turned else (_weights(5, 4), "[4,3]")
    changed = applies(LeftConstant(), _product(graph, data, body, weight, **given))
    assert _ops(changed) == operators


def test_gemm_with_its_weights_first_and_a_computed_bias(graph, applies):
    body = "r = Relu(x) y = Gemm<beta=0.5>(w, r, x)"
    changed = applies(LeftConstant(), _product(graph, "[4,4]", body, _weights(4, 4)))
    assert _ops(changed) == ["Relu", "Mul", "Gemm", "Transpose", "Add"]


@pytest.mark.parametrize(
    ("attributes", "bias", "operators"),
    [
        ("alpha=0.5, beta=2.0", _weights(3), ["Gemm"]),
        ("alpha=0.5, beta=2.0", _weights(), ["Gemm"]),
        ("alpha=-1.5", _weights(1, 3), ["Gemm"]),
        ("beta=0.0", _weights(3), ["Gemm"]),
        ("beta=3.0", _weights(2, 3), ["Gemm", "Add"]),
        ("transA=0", _weights(2, 1), ["Gemm", "Add"]),
    ],
)
def test_factors_of_gemm_go_into_its_constants(graph, applies, attributes, bias, operators):
    body = f"y = Gemm<{attributes}>(x, w, c)"
    changed = applies(GemmToPlain(), _product(graph, "[2,4]", body, _weights(4, 3), c=bias))
    assert _ops(changed) == operators
    assert set(changed.graph[0].attributes) == {"transB"}


def test_layers_with_an_alpha_each_share_their_weights(graph, applies):
    body = "a = Gemm<alpha=2.0>(x, w) b = Gemm<alpha=-0.5>(x, w) d = Gemm(x, w) y = Sum(a, b, d)"
    changed = applies(GemmToPlain(), _product(graph, "[16,16]", body, _weights(16, 16)))
    assert _ops(changed) == ["Mul", "Gemm", "Mul", "Gemm", "Gemm", "Sum"]
    assert (
        sum(
            len(value.shape) == 2 and value.shape[0] > 1
            for value in changed.graph.initializers.values()
        )
        == 1
    )


def test_gemm_of_a_transposed_input_with_a_computed_bias(graph, applies):
    body = "r = Relu(x) y = Gemm<transA=1, transB=1, beta=0.5>(r, w, x)"
    changed = applies(GemmToPlain(), _product(graph, "[4,4]", body, _weights(4, 4)))
    assert _ops(changed) == ["Relu", "Transpose", "Mul", "Gemm", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm<transB=1>(x, w, c)",
        "y = Gemm<alpha=1.0, beta=1.0>(x, w)",
    ],
    ids=["plain", "factors of one"],
)
def test_a_gemm_that_stays(graph, refuses, body):
    model = _product(graph, "[4,4]", body, _weights(4, 4), c=_weights(4))
    refuses(GemmToPlain(), model)


@pytest.mark.parametrize(
    ("data", "shape", "operators"),
    [
        ("[N,2,4]", (1, 4, 5), ["MatMul"]),
        ("[N,3,2,4]", (1, 1, 4, 5), ["MatMul"]),
        ("[N,4]", (1, 4, 5), ["Unsqueeze", "MatMul"]),
        ("[4]", (1, 1, 4, 5), ["Unsqueeze", "MatMul"]),
    ],
)
def test_leading_ones_of_weights_go(graph, applies, data, shape, operators):
    changed = applies(SqueezeWeight(), _product(graph, data, "y = MatMul(x, w)", _weights(*shape)))
    assert _ops(changed) == operators
    assert tuple(changed.graph[-1].inputs[1].shape) == (4, 5)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 1, 4, 5)])
def test_a_batch_of_weights_stays(graph, refuses, shape):
    refuses(SqueezeWeight(), _product(graph, "[N,2,3,4]", "y = MatMul(x, w)", _weights(*shape)))


@pytest.mark.parametrize(
    ("equation", "data", "shape", "operators"),
    [
        ("bij,jk->bik", "[N,3,4]", (4, 5), ["MatMul"]),
        ("bij,jk", "[N,3,4]", (4, 5), ["MatMul"]),
        ("bij , kj -> bik", "[N,3,4]", (5, 4), ["MatMul"]),
        ("...j,jk->...k", "[N,2,3,4]", (4, 5), ["MatMul"]),
        ("...j,jk", "[N,3,4]", (4, 5), ["MatMul"]),
        ("nchw,oc->nohw", "[N,4,2,3]", (5, 4), ["Transpose", "MatMul", "Transpose"]),
        ("bsd,dhk->bshk", "[N,3,4]", (4, 2, 5), ["MatMul", "Reshape"]),
        ("bsd,dhk->bhsk", "[N,3,4]", (4, 2, 5), ["MatMul", "Reshape", "Transpose"]),
        ("bshk,hkd->bsd", "[N,3,2,4]", (2, 4, 5), ["Reshape", "MatMul"]),
        ("bhsk,hkd->bsd", "[N,2,3,4]", (2, 4, 5), ["Transpose", "Reshape", "MatMul"]),
        ("bhsd,hde->bhse", "[N,2,3,4]", (2, 4, 5), ["Transpose", "MatMul", "Transpose"]),
        ("hsd,hde->hse", "[2,3,4]", (2, 4, 5), ["MatMul"]),
        ("hd,hde->he", "[2,4]", (2, 4, 5), ["Reshape", "MatMul", "Reshape"]),
        ("d,de->e", "[4]", (4, 5), ["MatMul"]),
    ],
)
def test_einsum_is_a_product(graph, applies, equation, data, shape, operators):
    body = f'y = Einsum<equation="{equation}">(x, w)'
    changed = applies(EinsumToMatMul(), _product(graph, data, body, _weights(*shape)))
    kinds = [kind for kind in _ops(changed) if kind != "Transpose"]
    assert kinds == [kind for kind in operators if kind != "Transpose"]
    assert _ops(changed).count("Transpose") <= operators.count("Transpose")
    assert "Einsum_0" in [node.name for node in changed.graph if node.op_type == "MatMul"]


def test_weights_may_be_the_first_operand_of_einsum(graph, applies):
    body = 'y = Einsum<equation="ij,bjk->bik">(w, x)'
    changed = applies(EinsumToMatMul(), _product(graph, "[N,4,3]", body, _weights(5, 4)))
    assert _ops(changed) == ["Transpose", "MatMul", "Transpose"]


@pytest.mark.parametrize(
    ("equation", "data", "shape", "reason"),
    [
        ("bij,j->bij", "[N,3,4]", (4,), "multiplies elements"),
        ("bij,j->bi", "[N,3,4]", (4,), "one number per row"),
        ("bi,jk->bijk", "[N,3]", (4, 5), "multiplies elements"),
        ("bij,jk->bk", "[N,3,4]", (4, 5), "'i' is summed in one operand alone"),
        ("bii,ik->bk", "[N,3,3]", (3, 5), "twice"),
        ("bij,jk->bik", "[N,3,4]", (1, 5), "two sizes"),
        ("...ij,...jk->...ik", "[N,3,4]", (1, 4, 5), "two sizes"),
    ],
)
def test_an_einsum_that_is_no_product(graph, refuses, equation, data, shape, reason):
    model = _product(graph, data, f'y = Einsum<equation="{equation}">(x, w)', _weights(*shape))
    assert reason in str(EinsumToMatMul().refusal(model.graph[0]))
    refuses(EinsumToMatMul(), model)


def test_einsum_of_three_operands_or_of_none_that_is_constant_stays(graph, refuses):
    body = 'y = Einsum<equation="bi,ij,jk->bk">(x, w, c)'
    refuses(EinsumToMatMul(), _product(graph, "[N,4]", body, _weights(4, 3), c=_weights(3, 2)))
    body = 'r = Relu(x) z = Einsum<equation="bij,bkj->bik">(x, r) y = MatMul(z, w)'
    refuses(EinsumToMatMul(), _product(graph, "[N,3,4]", body, _weights(3, 3)))


@pytest.mark.parametrize(
    ("first", "second", "operators"),
    [
        ("[0,2,1]", "[0,2,1]", ["Relu"]),
        ("[1,2,0]", "[1,0,2]", ["Transpose", "Relu"]),
        ("[0,2,1]", "[2,1,0]", ["Transpose", "Relu"]),
    ],
)
def test_transposes_in_a_row_are_one_or_none(graph, applies, first, second, operators):
    body = f"a = Transpose<perm={first}>(x) b = Transpose<perm={second}>(a) y = Relu(b)"
    changed = applies(MergeTransposes(), graph("(float[N,2,3] x) => (float y)", body))
    assert _ops(changed) == operators


def test_transposes_that_stay(graph, refuses):
    body = "a = Transpose<perm=[0,2,1]>(x) y = Transpose<perm=[0,2,1]>(a)"
    refuses(MergeTransposes(), graph("(float[N,2,3] x) => (float y)", body))
    refuses(MergeTransposes(), graph("(float[N,2] x) => (float y)", "y = Transpose(x)"))


def test_a_first_transpose_that_others_read_stays_for_them(graph, applies):
    body = "a = Transpose<perm=[0,2,1]>(x) b = Transpose<perm=[0,2,1]>(a) r = Relu(b) "
    body += "s = ReduceSum<keepdims=0>(a) y = Add(r, s)"
    changed = applies(MergeTransposes(), graph("(float[N,2,3] x) => (float y)", body))
    assert _ops(changed).count("Transpose") == 1


def test_both_normalised_models_have_the_form_of_layers(graph):
    body = "a = MatMul(w, x) r = Relu(a) b = MatMul(v, r) y = Add(b, x)"
    model = _product(graph, "[N,4,3]", body, _weights(5, 4), v=_weights(1, 4, 5))
    found = normalise(model)
    for each in (found.model, found.unfolded):
        weights = [node.inputs[1] for node in each.graph if node.op_type == "MatMul"]
        assert [tuple(value.shape) for value in weights] == [(4, 5), (5, 4)]
