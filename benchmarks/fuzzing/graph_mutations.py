"""Mutations of a model that know what its parts mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Mutation = Callable[[onnx.ModelProto, np.random.Generator], None]

OPERATORS = (
    "Relu", "Conv", "Gemm", "MatMul", "Add", "Mul", "Reshape", "Transpose", "Softmax", "Concat",
    "Identity", "Shape", "Gather", "Slice", "Pad", "Resize", "Split", "BatchNormalization",
    "ConvTranspose", "GlobalAveragePool", "ReduceMean", "LSTM", "If", "Loop", "Scan", "Cast",
    "QuantizeLinear", "DequantizeLinear", "SequenceConstruct", "Optional", "Einsum", "NonZero",
    "StringNormalizer", "RandomNormal", "Unheard", "Clip", "Constant", "Expand", "TopK", "Dropout",
)  # fmt: skip
DOMAINS = ("ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.training", "pkg.torch", "x\ny")
TYPES = (np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_)


def mutate_graph(model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """Change a model in one or two ways; in which."""
    names = [str(rng.choice(list(MUTATIONS))) for _ in range(int(rng.choice([1, 1, 2])))]
    for name in names:
        MUTATIONS[name](model, rng)
    return ", ".join(names)


def _node(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.NodeProto:
    return model.graph.node[rng.integers(len(model.graph.node))]


def _tensor(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.TensorProto:
    found = [*model.graph.initializer]
    found += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return found[rng.integers(len(found))] if found else model.graph.initializer.add()


def _names(model: onnx.ModelProto) -> list[str]:
    nodes = model.graph.node
    return [name for node in nodes for name in (*node.input, *node.output)] + [""]


def other_operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node computes something else."""
    _node(model, rng).op_type = str(rng.choice(OPERATORS))


def other_domain(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node is of another domain, imported or not."""
    node = _node(model, rng)
    node.domain = str(rng.choice(DOMAINS))
    if rng.random() < 0.6:
        model.opset_import.append(helper.make_opsetid(node.domain, int(rng.integers(0, 25))))


def other_opset(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The opset, or the version of the format, is another one."""
    model.opset_import[0].version = int(rng.integers(-1, 30))
    if rng.random() < 0.3:
        model.ir_version = int(rng.integers(0, 16))


def rewire_input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node reads another tensor: one of its own, a later one, or one that nothing writes."""
    node = _node(model, rng)
    name = str(rng.choice([*_names(model), "nothing writes this"]))
    if node.input:
        node.input[rng.integers(len(node.input))] = name
    else:
        node.input.append(name)


def rewire_output(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node writes a tensor that another one writes too, or an input."""
    node = _node(model, rng)
    if node.output:
        node.output[rng.integers(len(node.output))] = str(rng.choice(_names(model)))


def lose_node(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node is missing."""
    del model.graph.node[rng.integers(len(model.graph.node))]


def lose_input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node reads too little, or too much."""
    node = _node(model, rng)
    if node.input and rng.random() < 0.6:
        del node.input[rng.integers(len(node.input))]
    else:
        node.input.append(str(rng.choice(_names(model))))


def shuffle_nodes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Nodes come in any order."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in rng.permutation(len(nodes)))


def other_values(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant has extreme values."""
    tensor = _tensor(model, rng)
    array = _array(tensor)
    if array is None or array.dtype.kind not in "fi" or not array.size:
        return
    extreme = {"f": (0.0, np.nan, np.inf, 1e38, -1e30, 1e-40), "i": (0, -1, 127, 7)}
    value = rng.choice(extreme[array.dtype.kind])
    if rng.random() < 0.5:
        array[...] = value
    else:
        array.flat[rng.integers(array.size)] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def other_type(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant is of another type."""
    tensor = _tensor(model, rng)
    array = _array(tensor)
    if array is not None:
        kind = TYPES[rng.integers(len(TYPES))]
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))


def other_shape(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant has another shape, of as many elements or of others."""
    tensor = _tensor(model, rng)
    array = _array(tensor)
    if array is None:
        return
    forms = (
        [array.ravel(), array[None], array[..., None], array.T, array.ravel()[:1], array[:0]]
        if array.ndim
        else [array[None], np.stack([array] * 3)]
    )
    chosen = np.ascontiguousarray(forms[rng.integers(len(forms))])
    tensor.CopyFrom(numpy_helper.from_array(chosen, tensor.name))


def claim_shape(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant claims more, or less, than its data hold."""
    tensor = _tensor(model, rng)
    size = int(rng.choice([0, -1, 1, 3, 2**20, 2**31, 2**40, 2**62]))
    if tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = size
    else:
        tensor.dims.append(size)


def external(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A constant lies in another file: missing, outside, or of another length."""
    tensor = _tensor(model, rng)
    places = [
        "weights.bin",
        "missing.bin",
        "../outside.bin",
        "/etc/hostname",
        "model.onnx",
        "",
        ".",
    ]
    where = str(rng.choice(places))
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": where, "offset": str(rng.choice(["0", "4", "-1", "99999999", "x"])),
               "length": str(rng.choice(["4", "0", "-4", "1e3", str(2**50)]))}  # fmt: skip
    for key, value in entries.items():
        if key == "location" or rng.random() < 0.6:
            tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")


def other_input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An input or output has another type or shape."""
    values = [*model.graph.input, *model.graph.output]
    if not values:
        return
    kind = values[rng.integers(len(values))].type.tensor_type
    if rng.random() < 0.4:
        kind.elem_type = int(rng.integers(0, 25))
    if rng.random() < 0.7 and kind.shape.dim:
        kind.shape.dim[rng.integers(len(kind.shape.dim))].dim_value = int(
            rng.choice([0, -1, 1, 2, 3, 2**20, 2**40])
        )
    elif rng.random() < 0.5:
        kind.ClearField("shape")
    else:
        kind.shape.dim.add(dim_value=1)


def other_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An attribute is missing, of another type, or of extreme values."""
    node = _node(model, rng)
    values: tuple[object, ...] = (
        0, -1, 3, 2**31, 0.5, float("nan"), "SAME", "", [1], [0, 0], [2**40, 1], [0.5], [-1] * 4,
    )  # fmt: skip
    value = values[rng.integers(len(values))]
    known = [a.name for a in node.attribute] or ["axis"]
    name = str(rng.choice([*known, "axis", "axes", "perm", "group", "to", "alpha"]))
    kept = [a for a in node.attribute if a.name != name]
    attributes = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(attributes)
    if rng.random() < 0.75:
        node.attribute.append(helper.make_attribute(name, value))


def into_branch(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node is computed inside the branches of an If."""
    at = int(rng.integers(len(model.graph.node)))
    node = onnx.NodeProto.FromString(model.graph.node[at].SerializeToString())
    outs = [helper.make_tensor_value_info(o, 1, None) for o in node.output if o]
    branch = helper.make_graph([node], "branch", [], outs)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    outer = helper.make_node("If", ["condition"], [o for o in node.output if o],
                             then_branch=branch, else_branch=branch)  # fmt: skip
    model.graph.node[at].CopyFrom(outer)


def into_function(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node is computed inside a function, which may be broken or call itself."""
    node = _node(model, rng)
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    if rng.random() < 0.2:
        inner.op_type, inner.domain = "Wrapped", "local"
    opsets = list(model.opset_import)[: 0 if rng.random() < 0.2 else None]
    inputs = list(dict.fromkeys(i for i in node.input if i))
    function = helper.make_function("local", "Wrapped", inputs, list(node.output), [inner], opsets)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    del node.attribute[:]
    del node.input[:]
    node.input.extend(inputs)
    node.op_type, node.domain = "Wrapped", "local"


def metadata(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The model says something odd of itself."""
    keys = ("onnxq.preprocess", "onnxq.version", "onnxq.recipe", "onnxq.figures", "names")
    values = ("", "{}", "[]", "null", '{"mean": null}', "1" * 5000, "[" * 3000, '{"mean": [1e999]}')
    for _ in range(int(rng.integers(1, 4))):
        model.metadata_props.add(key=str(rng.choice(keys)), value=str(rng.choice(values)))


def _array(tensor: onnx.TensorProto) -> np.ndarray | None:
    try:
        return numpy_helper.to_array(tensor).copy()
    except Exception:
        # An earlier mutation may have broken it, in any way that onnx reports.
        return None


MUTATIONS: dict[str, Mutation] = {
    each.__name__: each
    for each in (
        other_operator, other_domain, other_opset, rewire_input, rewire_output, lose_node,
        lose_input, shuffle_nodes, other_values, other_type, other_shape, claim_shape, external,
        other_input, other_attribute, into_branch, into_function, metadata,
    )
}  # fmt: skip
