"""A generator as an ONNX graph: from noise to images for the model's input.

It has the shape of DCGAN (Radford et al., 2016) with nearest upsampling, as in DFQF (Li et al.,
2020): MatMul -> BatchNormalization -> [Resize x2 -> Conv -> BatchNormalization -> LeakyRelu] ... ->
Conv -> Tanh -> BatchNormalization.

BatchNormalization always uses the statistics of the batch. The scale and bias of the last one are
trained, starting from the middle of the range of pixels, since the model's own data may be darker
or flatter than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.runtime.session import Arrays
from onnxq.synthesise.images import ImageSpace
from onnxq.synthesise.parts import Parts

PREFIX = "onnxq.generator"
"""What the names of parameters and nodes begin with."""
NOISE = "onnxq.noise"
"""The input that takes standard normal noise, (samples, LATENT)."""
METADATA_KEY = "onnxq.generator"
"""The key of a generator's metadata: its training, and the batch that shares statistics."""
LATENT = 100
"""Random numbers that the generator turns into one image."""

LEAST_BASE = 7
"""Height and width that the projection has at least, as long as one doubling is left."""
MANY_CLASSES = 32
"""From which on the first layers are twice as wide."""
WIDTH, LEAST_WIDTH = 32, 16
"""Channels of the first layers, and of any."""
SLOPE = 0.2
"""Of LeakyRelu below zero (DCGAN)."""
EPSILON = 1e-5


@dataclass(frozen=True)
class Generator:
    """The architecture of a generator.

    Attributes:
        space: of the images.
        channels: of the projection, then of the convolution after each doubling.
        base: height and width of the projection.
    """

    space: ImageSpace
    channels: tuple[int, ...]
    base: tuple[int, int]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by the name of its graph input."""
        return {f"{PREFIX}.{name}": shape for name, shape in self.shapes.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by name."""
        first, (height, width) = self.channels[0], self.base
        found: dict[str, tuple[int, ...]] = {
            "project.weight": (LATENT, first * height * width),
            **_norm_shapes("project", first),
        }
        for i, (before, after) in enumerate(zip(self.channels, self.channels[1:], strict=False)):
            found[f"conv{i}.weight"] = (after, before, 3, 3)
            found |= _norm_shapes(f"conv{i}", after)
        colours = _image_channels(self.space)
        found["image.weight"] = (colours, self.channels[-1], 3, 3)
        found |= _norm_shapes("image", colours)
        return found

    def parameters(self, rng: np.random.Generator) -> Arrays:
        """Initial values: He et al. 2015 for weights, 1 and 0 for scales and biases."""
        found: Arrays = {}
        for name, shape in self.inputs.items():
            if name.endswith("weight"):
                fan_in = shape[0] if len(shape) == 2 else math.prod(shape[1:])
                drawn = rng.standard_normal(shape, np.float32)
                found[name] = drawn * np.float32(math.sqrt(2 / fan_in))
            else:
                found[name] = np.full(shape, float(name.endswith("scale")), np.float32)
        return found

    def attach(self, parts: Parts, values: Mapping[str, ir.Value]) -> ir.Value:
        """Add the nodes from noise to images.

        Args:
            parts: takes the nodes.
            values: the noise and the parameters, by name.

        Returns:
            The images, (samples, *space.shape).
        """
        x = parts.op("MatMul", values[NOISE], values[f"{PREFIX}.project.weight"])
        x = parts.op("Reshape", x, parts.integers([-1, self.channels[0], *self.base]))
        x = _scaled(parts, _normalised(parts, x), values, "project")
        for i in range(len(self.channels) - 1):
            x = _doubled(parts, x)
            x = _convolved(parts, x, values[f"{PREFIX}.conv{i}.weight"])
            x = _scaled(parts, _normalised(parts, x), values, f"conv{i}")
            x = parts.op("LeakyRelu", x, alpha=SLOPE)
        x = parts.op("Tanh", _convolved(parts, x, values[f"{PREFIX}.image.weight"]))
        x = _normalised(parts, self._cropped(parts, x))
        x = _scaled(parts, x, values, "image")
        if self.space.axes == (1, 2):
            x = parts.op("Transpose", x, perm=[0, 2, 3, 1])
        return self._in_range(parts, x)

    def _cropped(self, parts: Parts, x: ir.Value) -> ir.Value:
        """The images cropped to their size, where that is no multiple of the base."""
        sides = _sides(self.space)
        if all(b << (len(self.channels) - 1) == s for b, s in zip(self.base, sides, strict=True)):
            return x
        ends, axes = parts.integers(sides), parts.integers([2, 3])
        return parts.op("Slice", x, parts.integers([0, 0]), ends, axes)

    def _in_range(self, parts: Parts, x: ir.Value) -> ir.Value:
        space = self.space
        x = parts.op("Mul", x, parts.constant(space.spread[None]))
        x = parts.op("Add", x, parts.constant(space.centre[None]))
        if space.low is None or space.high is None:
            return x
        x = parts.op("Max", x, parts.constant(space.low[None]))
        return parts.op("Min", x, parts.constant(space.high[None]))


def size_generator(space: ImageSpace, classes: int) -> Generator:
    """The architecture for a size of images and a number of classes.

    Height and width are halved as long as they stay above `LEAST_BASE`. The number of channels is
    halved from the second doubling on.

    Raises:
        ModelError: the model's input is no image.
    """
    if space.axes is None:
        raise ModelError(
            f"A sample of the model's input '{space.name}' is {space.shape}; a generator makes "
            "images of 1 or 3 channels: leave out --synthesis generator."
        )
    doublings = max(1, int(math.log2(max(min(_sides(space)) / LEAST_BASE, 1))))
    first = WIDTH if classes < MANY_CLASSES else 2 * WIDTH
    later = [max(LEAST_WIDTH, first >> i) for i in range(doublings)]
    return Generator(space, (first, *later), _base(space, doublings))


def before_model(model: ir.Model, generator: Generator) -> tuple[ir.Model, list[str]]:
    """A copy of the model with the generator before it, and the generator's parameter names.

    The images keep the name of the input that they replace. The parameters are graph inputs.
    """
    copy = model.clone(deep_copy=False)
    graph = copy.graph
    (old,) = (value for value in graph.inputs if value.name == generator.space.name)
    inputs = _inputs(generator)
    parts = Parts(copy, PREFIX)
    images = generator.attach(parts, inputs)
    old.name = f"{old.name}.replaced"
    images.name, images.type, images.shape = generator.space.name, old.type, old.shape
    old.replace_all_uses_with(images)
    graph.inputs[:] = list(inputs.values())
    parts.extend()
    graph.sort()
    return copy, [name for name in inputs if name != NOISE]


def stand_alone(generator: Generator, parameters: Arrays, opset: int) -> ir.Model:
    """The generator as a model of its own, with its parameters as initializers."""
    noise = _inputs(generator)[NOISE]
    graph = ir.Graph([noise], [], nodes=[], opset_imports={"": opset}, name="generator")
    model = ir.Model(graph, ir_version=8)
    parts = Parts(model, PREFIX)
    values = {name: parts.constant(array, name) for name, array in parameters.items()}
    images = generator.attach(parts, {NOISE: noise, **values})
    images.name, images.type = generator.space.name, ir.TensorType(ir.DataType.FLOAT)
    images.shape = ir.Shape(["N", *generator.space.shape])
    parts.extend()
    graph.outputs.append(images)
    return model


def read_back(model: ir.Model, space: ImageSpace) -> tuple[Generator, Arrays]:
    """Architecture and parameters of a generator that `stand_alone` wrote.

    Args:
        model: the generator.
        space: of the images that it generates.

    Raises:
        ModelError: a parameter is missing or has another shape.
    """
    held = {k: v.const_value.numpy() for k, v in model.graph.initializers.items() if v.const_value}
    convs: list[np.ndarray] = []
    while (weights := held.get(f"{PREFIX}.conv{len(convs)}.weight")) is not None:
        convs.append(weights)
    channels = [w.shape[1] for w in convs[:1]] + [w.shape[0] for w in convs]
    if channels:
        generator = Generator(space, tuple(channels), _base(space, len(convs)))
        shapes = generator.inputs
        if shapes == {name: held[name].shape for name in shapes if name in held}:
            return generator, {name: np.array(held[name], np.float32) for name in shapes}
    raise ModelError(
        "The generator of --generator can't be trained further, since it does not hold all "
        "its parameters by name; give one that --save-generator wrote, or leave out "
        "--generator-mode adversarial."
    )


def _inputs(generator: Generator) -> dict[str, ir.Value]:
    shapes: dict[str, tuple[int | str, ...]] = {NOISE: ("N", LATENT), **generator.inputs}
    kind = ir.DataType.FLOAT
    return {name: ir.val(name, kind, ir.Shape(list(shape))) for name, shape in shapes.items()}


def _norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (1, channels, 1, 1) for part in ("scale", "bias")}


def _normalised(parts: Parts, x: ir.Value) -> ir.Value:
    """(x - m) / sqrt(v + eps), with mean and variance of each channel over the batch."""
    shifted = parts.op("Sub", x, parts.mean(x, [0, 2, 3], keep=True))
    variance = parts.mean(parts.square(shifted), [0, 2, 3], keep=True)
    deviation = parts.op("Sqrt", parts.op("Add", variance, parts.scalar(EPSILON)))
    return parts.op("Div", shifted, deviation)


def _scaled(parts: Parts, x: ir.Value, values: Mapping[str, ir.Value], name: str) -> ir.Value:
    x = parts.op("Mul", x, values[f"{PREFIX}.{name}.scale"])
    return parts.op("Add", x, values[f"{PREFIX}.{name}.bias"])


def _doubled(parts: Parts, x: ir.Value) -> ir.Value:
    """Nearest upsampling by 2."""
    none = parts.constant(np.array([], np.float32))
    twice = parts.constant(np.array([1, 1, 2, 2], np.float32))
    return parts.op(
        "Resize",
        x,
        none,
        twice,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def _convolved(parts: Parts, x: ir.Value, weights: ir.Value) -> ir.Value:
    return parts.op("Conv", x, weights, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def _base(space: ImageSpace, doublings: int) -> tuple[int, int]:
    height, width = (-(-side // 2**doublings) for side in _sides(space))
    return height, width


def _sides(space: ImageSpace) -> tuple[int, int]:
    first = 0 if space.axes == (1, 2) else 1
    return space.shape[first], space.shape[first + 1]


def _image_channels(space: ImageSpace) -> int:
    return space.shape[2] if space.axes == (1, 2) else space.shape[0]
