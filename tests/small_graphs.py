"""Small graphs as ONNX text, and what the stages up to the export make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq import pipeline
from onnxq.calibrate.calibrator import calibrate
from onnxq.data.samples import open_samples
from onnxq.export.compact import export
from onnxq.export.lower import Lowering
from onnxq.forms.bias_correction import correct_biases, layer_inputs
from onnxq.forms.quantization import Quantization
from onnxq.load.interface import input_specs
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.options.recipe import Recipe
from onnxq.plan import Plan, make_plan
from onnxq.runtime.dataset import Dataset
from onnxq.runtime.session import Arrays, open_session
from onnxq.student.build import build_student, initial_qparams
from onnxq.student.qparams import QParams
from onnxq.student.student import Student, bake
from onnxq.train.teacher import Targets, Teacher, keep_targets

compress = partial(pipeline.compress, allow_worse=True)
"""The main job on graphs like these, which are mostly nodes and grow as integers."""

CHANNELS = {
    "wx": (6, 3, 3, 3), "bx": (6,), "wy": (6, 3, 1, 1), "by": (6,), "w6": (6, 6, 3, 3),
    "b6": (6,), "v6": (6, 6, 1, 1), "c6": (6,), "dw": (6, 1, 3, 3), "db": (6,), "wh": (5, 6),
    "bh": (5,), "wt": (6, 6, 2, 2), "w12": (6, 12, 1, 1), "w3": (6, 3, 1, 1),
}  # fmt: skip
"""Shapes of the weights that the bodies below name."""

CONSTANTS: dict[str, np.ndarray] = {
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "edges": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "starts": np.array([0, 0]),
    "ends": np.array([1000, 1000]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, 2]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "shuffle": np.array([0, 2, 3, 8, 8]),
    "back": np.array([0, 6, 8, 8]),
    "halves": np.array([3, 3]),
    "empty": np.array([], np.float32),
}

HEAD = "g = GlobalAveragePool (z) f = Flatten (g) y = Gemm <transB = 1> (f, wh, bh)"
"""From a tensor `z` of 6 channels to 5 logits."""

CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, wx, bx)"
LAST = "z = Conv <pads = [1, 1, 1, 1]> (p, w6, b6)"

BODIES = {
    "relu": f"{CONV} z = Relu (a)",
    "clip": f"{CONV} z = Clip (a, zero, six)",
    "signed": f"{CONV} z = Conv (a, v6, c6)",
    "no_bias": f"{CONV} r = Relu (a) z = Conv (r, v6)",
    "read_twice": f"{CONV} r = Relu (a) c = Conv (r, v6, c6) z = Add (r, c)",
    "residual": f"{CONV} r = Relu (a) c = Conv (r, v6, c6) s = Add (r, c) z = Relu (s)",
    "concat": f"{CONV} b = Conv (x, wy, by) r = Relu (a) p = Concat <axis = 1> (r, b) "
    "z = Conv (p, w12)",
    "pad": f"{CONV} r = Relu (a) p = Pad (r, edges) z = Conv (p, w6, b6)",
    "pad_signed": f"{CONV} p = Pad (a, edges) z = Conv (p, w6, b6)",
    "slice": f"{CONV} p = Slice (a, starts, ends, axes, steps) {LAST}",
    "shortcut": f"{CONV} q = Conv (x, w3) r = Relu (q) h = Slice (r, starts, ends, axes, steps) "
    "c = Conv <strides = [2, 2]> (a, v6, c6) z = Add (h, c)",
    "leaky": f"{CONV} p = LeakyRelu <alpha = 0.1> (a) {LAST}",
    "excite": f"{CONV} r = Relu (a) m = GlobalAveragePool (r) e = Conv (m, v6, c6) "
    "s = Sigmoid (e) p = Mul (r, s) " + LAST,
    "max_pool": f"{CONV} p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], "
    f"pads = [1, 1, 1, 1]> (a) {LAST}",
    "average_pool": f"{CONV} r = Relu (a) p = AveragePool <kernel_shape = [2, 2], "
    f"strides = [2, 2]> (r) {LAST}",
    "depth_wise": f"{CONV} r = Clip (a, zero, six) "
    "d = Conv <group = 6, pads = [1, 1, 1, 1]> (r, dw, db) p = Clip (d, zero, six) " + LAST,
    "nearest": f'{CONV} p = Resize <mode = "nearest", nearest_mode = "floor", '
    f'coordinate_transformation_mode = "asymmetric"> (a, empty, twice) {LAST}',
    "linear": f'{CONV} p = Resize <mode = "linear"> (a, empty, twice) {LAST}',
    "shuffle": f"{CONV} r = Relu (a) s = Reshape (r, shuffle) "
    f"t = Transpose <perm = [0, 2, 1, 3, 4]> (s) p = Reshape (t, back) {LAST}",
    "split": f"{CONV} r = Relu (a) s, t = Split <axis = 1> (r, halves) c = Conv (s, w3) "
    "u = Concat <axis = 1> (c, r) z = Conv (u, w12)",
    "transposed": f"{CONV} r = Relu (a) t = ConvTranspose <strides = [2, 2]> (r, wt, c6) "
    "p = Relu (t) " + LAST,
    "hard_swish": f"{CONV} p = HardSwish (a) {LAST}",
    "max_pool_relu": f"{CONV} m = MaxPool <kernel_shape = [2, 2]> (a) p = Relu (m) {LAST}",
    "shared": f"{CONV} r = Relu (a) c = Conv (r, v6, c6) d = Conv (c, v6, b6) z = Relu (d)",
    "shared_under_factors": f"{CONV} r = Relu (a) m = Mul (v6, plus_minus) c = Conv (r, m, c6) "
    "n = Mul (half, v6) d = Conv (c, n, b6) z = Relu (d)",
    "relu_twice": f"{CONV} r = Relu (a) c = Conv (r, v6, c6) d = Conv (a, w6, b6) "
    "s = Slice (c, ones, minus_ones, axes) z = Add (s, d)",
    "float_side": f"{CONV} t = Tanh (a) r = Relu (a) c = Conv (r, v6, c6) z = Add (t, c)",
    "clip_of_one_element": f"{CONV} z = Clip (a, first_zero, first_six)",
    "captured": f"{CONV} r = Relu (a) c = Conv (r, v6, c6) p = Loop "
    "<body = inner (int64 i, bool on, float[N, 6, 8, 8] s) => (bool off, float[N, 6, 8, 8] v) "
    f"{{ off = Identity (on) u = Tanh (s) v = Add (u, r) }}> (three, yes, c) {LAST}",
    "captured_by_relu": f"{CONV} b = Conv (x, wy, by) q = If (yes) "
    "<then_branch = one () => (float[N, 6, 8, 8] v) { v = Relu (a) }, "
    f"else_branch = two () => (float[N, 6, 8, 8] w) {{ w = Neg (b) }}> "
    "p = Add (q, b) z = Conv (p, v6, c6)",
}
"""Graphs from `x`, (N, 3, 8, 8), to `z`, 6 channels; `HEAD` follows."""

CONSTANTS |= {"ones": np.array([1, 1]), "minus_ones": np.array([-1, -1])}
# Powers of two, so that a factor may be in the weight or in its scale, bit by bit.
CONSTANTS |= {"half": np.full((1, 1, 1, 1), 0.5, np.float32)}
CONSTANTS |= {"plus_minus": np.array([1, -2, 0.5, -0.25, 4, -1], np.float32).reshape(6, 1, 1, 1)}
CONSTANTS |= {"three": np.array(3), "yes": np.array(True)}
CONSTANTS |= {"first_zero": np.zeros(1, np.float32), "first_six": np.full(1, 6, np.float32)}


class Feeds:
    """A dataset of whole feeds in memory."""

    batch = 1

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self.feeds = list(feeds)

    def __len__(self) -> int:
        return len(self.feeds)

    def batches(self, size: int, indices: np.ndarray | None = None) -> Iterator[Arrays]:
        return iter(self.feeds if indices is None else [self.feeds[i] for i in indices])


def targets_of(folder: Path, model: ir.Model, x: np.ndarray, least: int) -> Targets:
    """The model's outputs on rows of its input, of which at least so many are held out."""
    np.savez(folder / "x.npz", x=x)
    slices = open_samples(folder / "x.npz", input_specs(model), None).split(least=least)
    teacher, kept = Teacher(model, ["y"]), []
    for name, part in zip(("train", "held"), slices, strict=True):
        (folder / name).mkdir(parents=True)
        kept.append(keep_targets(teacher, part, folder / name))
    (train, objective), (held_out, _) = kept
    return Targets(teacher, train, held_out, objective)


def quantization_on(targets: Targets) -> Quantization:
    """Quantizes forms of the model on these samples."""
    return Quantization(targets.train.parts[0], targets, 16)


def build(
    text: str, weights: Mapping[str, np.ndarray | tuple[int, ...]], opset: int = 14
) -> ir.Model:
    """A named model with shapes; a shape stands for random weights."""
    rng = np.random.default_rng(3)
    tensors = []
    for name, given in weights.items():
        if isinstance(given, tuple):
            fan_in = int(np.prod(given[1:])) if len(given) > 1 else 9
            given = rng.normal(0, 1 / np.sqrt(fan_in), given).astype(np.float32)
        tensors.append(ir.tensor(given, name=name))
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = ir.from_onnx_text(f"{header} {text}", initializers=tensors)
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    InferShapes()(model)
    return model


def small_graph(name: str) -> ir.Model:
    """One of the bodies with its head."""
    return image_graph(f"{BODIES[name]} {HEAD}")


def image_graph(body: str, result: str = "float[N, 5] y", **more: np.ndarray) -> ir.Model:
    """A graph from `x`, (N, 3, 8, 8), whose weights are those of `CHANNELS` that it names."""
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    known: dict[str, np.ndarray | tuple[int, ...]] = {**CHANNELS, **CONSTANTS, **more}
    return build(
        f"net (float[N, 3, 8, 8] x) => ({result}) {{ {body} }}",
        {name: given for name, given in known.items() if name in words},
    )


WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def images(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)


@dataclass(frozen=True)
class Quantized:
    """A graph on its way through the stages.

    Attributes:
        corrected: the parameters with corrected biases.
        exported: what a file holds.
        lowered: the same while every value has the name of its tensor.
    """

    teacher: ir.Model
    plan: Plan
    student: Student
    qparams: QParams
    corrected: QParams
    baked: ir.Model
    exported: ir.Model
    lowered: ir.Model


def quantize(
    teacher: ir.Model,
    samples: Dataset | None = None,
    recipe: Recipe | None = None,
) -> Quantized:
    """Plan, calibrate, rewrite and export."""
    recipe = recipe or Recipe()
    plan = make_plan(teacher, recipe)
    means = layer_inputs(teacher, plan).values()
    batch = teacher.graph.inputs[0].shape[0]
    samples = samples or Feeds([{"x": images(batch if isinstance(batch, int) else 16)}])
    statistics = calibrate(teacher, list(plan.tensors), samples, 16, means=means)
    qparams = initial_qparams(teacher, plan, statistics, recipe.calibration)
    student = build_student(teacher, plan)
    return Quantized(
        teacher,
        plan,
        student,
        qparams,
        correct_biases(teacher, plan, qparams, statistics),
        bake(student, qparams),
        export(student, qparams),
        Lowering(student, qparams).run(),
    )


def run(model: ir.Model | Path, feeds: Arrays, *, optimise: bool = False) -> Arrays:
    """All outputs by name."""
    session = open_session(model, optimise=optimise)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def tables(model: ir.Model) -> dict[str, np.ndarray]:
    """The centroids of each layer whose weights are looked up, by the layer's name."""
    found = {}
    for node in model.graph:
        value = node.inputs[1] if node.op_type in WEIGHTED else None
        while value is not None and (writer := value.producer()) is not None:
            value = writer.inputs[0]
            if writer.op_type == "Gather":
                found[str(node.name)] = value.const_value.numpy()
    return found


def serialised(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def codes_by_tensor(model: ir.Model, plan: Plan, feeds: Arrays) -> Arrays:
    """The codes of every quantized tensor of a lowered model, optimisation off."""
    proto = with_outputs(ir.to_proto(model), [f"{name}.codes" for name in plan.tensors])
    session = open_session(proto.SerializeToString(), optimise=False)
    names = [f"{name}.codes" for name in plan.tensors]
    return dict(zip(names, session.run(names, feeds), strict=True))


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    present = {output.name for output in proto.graph.output}
    for name in names:
        if name not in present:
            proto.graph.output.add().name = name
    return proto


@dataclass(frozen=True)
class Step:
    """The nodes from quantized tensors to the next one, as a model of its own."""

    name: str
    model: onnx.ModelProto
    inputs: list[str]


def steps(model: ir.Model, plan: Plan) -> Iterator[Step]:
    """One model for each tensor that integers write: codes in, codes out."""
    proto = ir.to_proto(model)
    producers = {out: node for node in proto.graph.node for out in node.output}
    stops = {f"{name}.codes" for name in plan.tensors}
    extractor = onnx.utils.Extractor(proto)
    for name, spec in plan.tensors.items():
        if spec.integer:
            inputs = _sources(f"{name}.codes", producers, stops)
            yield Step(name, extractor.extract_model(inputs, [f"{name}.codes"]), inputs)


def _sources(target: str, producers: Mapping[str, onnx.NodeProto], stops: set[str]) -> list[str]:
    found: dict[str, None] = {}
    waiting = list(producers[target].input)
    while waiting:
        name = waiting.pop()
        if name in stops:
            found[name] = None
        elif name in producers:
            waiting += producers[name].input
    return list(found)


def differing_codes(quantized: Quantized, feeds: Arrays) -> tuple[int, int, int]:
    """Over all layers fed identical codes: elements, elements that differ, largest difference.

    The student's arithmetic is that of the exported graph with optimisation off; it is held
    against the kernels that ONNX Runtime really runs.
    """
    expected = codes_by_tensor(quantized.lowered, quantized.plan, feeds)
    elements = different = largest = 0
    for step in steps(quantized.lowered, quantized.plan):
        session = open_session(step.model.SerializeToString())
        fed = {name: expected[name] for name in step.inputs}
        (codes,) = session.run([f"{step.name}.codes"], fed)
        error = np.abs(codes.astype(int) - expected[f"{step.name}.codes"].astype(int))
        elements += error.size
        different += int(np.count_nonzero(error))
        largest = max(largest, int(error.max(initial=0)))
    return elements, different, largest


def whole_slopes(
    values: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    loss: Callable[[], float],
    change: float = 0.02,
) -> tuple[list[float], list[float]]:
    """Of each value moved as a whole: the central difference of the loss, and what is claimed."""
    expected, slopes = [], []
    for key, value in values.items():
        kept, losses = value.copy(), []
        for sign in (1, -1):
            value[...] = kept + np.float32(sign * change)
            losses.append(loss())
        value[...] = kept
        expected.append((losses[0] - losses[1]) / (2 * change))
        slopes.append(float(np.sum(gradients[key])))
    return expected, slopes
