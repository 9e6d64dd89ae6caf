"""VGG-16, ResNet-50 and a network of more than 2 GB, as the papers that use them count them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tools.network import Network

VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions of each stage; a 2 x 2 maximum ends it."""
VGG_HIDDEN = 4096
RESNET_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Bottleneck channels and number of blocks of each stage."""
EXPANSION = 4
LAST_GAMMA = 0.5
"""Keeps the variance from doubling in every residual block."""
WIDE_INPUT, WIDE_HIDDEN, WIDE_LAYERS = 1024, 8192, 8


@dataclass(frozen=True)
class Scale:
    """How large a network is made; the defaults are the real thing.

    Attributes:
        width: factor on every hidden number of channels.
        image: height and width of an image, a multiple of 32.
        classes: number of classes.
    """

    width: float = 1.0
    image: int = 224
    classes: int = 1000

    def channels(self, count: int) -> int:
        """So many channels, scaled."""
        return max(1, round(count * self.width))


def vgg16(net: Network, scale: Scale) -> ir.Value:
    """VGG-16, configuration D (Simonyan and Zisserman 2015): 16 weight layers with biases."""
    x, inputs = net.input("input", ["N", 3, scale.image, scale.image]), 3
    for stage, (width, count) in enumerate(VGG_STAGES, start=1):
        outputs = scale.channels(width)
        for index in range(1, count + 1):
            name = f"conv{stage}_{index}"
            x = net.conv(x, name, (outputs, inputs, 3, 3), bias=True)
            x, inputs = net.op("Relu", x, name=f"{name}.relu"), outputs
        x = _max_pool(net, x, f"pool{stage}", 2, 0)
    x, inputs = net.op("Flatten", x, name="flatten"), inputs * (scale.image // 32) ** 2
    for name in ("fc6", "fc7"):
        x = net.gemm(x, name, inputs, scale.channels(VGG_HIDDEN))
        x, inputs = net.op("Relu", x, name=f"{name}.relu"), scale.channels(VGG_HIDDEN)
    return net.gemm(x, "fc8", inputs, scale.classes)


def resnet50(net: Network, scale: Scale) -> ir.Value:
    """ResNet-50 (He et al. 2016), BatchNorm unfolded: 54 weight layers with the projections.

    A block's projection comes after its three convolutions, as exporters write it.
    """
    x, inputs = net.input("input", ["N", 3, scale.image, scale.image]), scale.channels(64)
    x = _conv_norm(net, x, "stem", (inputs, 3, 7, 7), stride=2)
    x = _max_pool(net, net.op("Relu", x, name="stem.relu"), "pool", 3, 1)
    for stage, (width, count) in enumerate(RESNET_STAGES, start=1):
        for index in range(count):
            stride = 2 if index == 0 and stage > 1 else 1
            hidden = scale.channels(width)
            x = _bottleneck(net, x, f"layer{stage}.{index}", inputs, hidden, stride)
            inputs = hidden * EXPANSION
    x = net.op("GlobalAveragePool", x, name="average")
    return net.gemm(net.op("Flatten", x, name="flatten"), "fc", inputs, scale.classes)


def wide(net: Network, scale: Scale) -> ir.Value:
    """Fully connected layers of 554 M parameters, 2.2 GB, and hardly any work for each."""
    hidden = scale.channels(WIDE_HIDDEN)
    x, inputs = net.input("input", ["N", WIDE_INPUT]), WIDE_INPUT
    for index in range(WIDE_LAYERS + 1):
        x = net.gemm(x, f"hidden{index}", inputs, hidden)
        x, inputs = net.op("Relu", x, name=f"hidden{index}.relu"), hidden
    return net.gemm(x, "classifier", hidden, scale.classes)


def _bottleneck(
    net: Network, x: ir.Value, name: str, inputs: int, hidden: int, stride: int
) -> ir.Value:
    outputs = hidden * EXPANSION
    y = _conv_norm(net, x, f"{name}.a", (hidden, inputs, 1, 1))
    y = net.op("Relu", y, name=f"{name}.a.relu")
    y = _conv_norm(net, y, f"{name}.b", (hidden, hidden, 3, 3), stride)
    y = net.op("Relu", y, name=f"{name}.b.relu")
    y = _conv_norm(net, y, f"{name}.c", (outputs, hidden, 1, 1), gamma=LAST_GAMMA)
    if inputs != outputs or stride != 1:
        x = _conv_norm(net, x, f"{name}.project", (outputs, inputs, 1, 1), stride)
    return net.op("Relu", net.op("Add", y, x, name=f"{name}.add"), name=f"{name}.relu")


def _conv_norm(
    net: Network,
    x: ir.Value,
    name: str,
    shape: tuple[int, int, int, int],
    stride: int = 1,
    gamma: float = 1.0,
) -> ir.Value:
    x = net.conv(x, f"{name}.conv", shape, stride)
    return net.batch_norm(x, f"{name}.bn", shape[0], gamma)


def _max_pool(net: Network, x: ir.Value, name: str, size: int, pad: int) -> ir.Value:
    sizes = {"kernel_shape": [size, size], "strides": [2, 2], "pads": [pad] * 4}
    return net.op("MaxPool", x, name=name, **sizes)
