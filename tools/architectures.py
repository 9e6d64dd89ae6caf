"""The three sample networks for 8 x 8 grey images of digits."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tools.network import Network

CLASSES = 10
RESNET_WIDTHS = (16, 32, 64)
MOBILENET_STAGES = ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1))
"""Output channels and stride of each inverted residual block."""
EXPANSION = 4
HEAD = 96


def mlp(net: Network, x: ir.Value) -> ir.Value:
    """64 -> 128 -> 64 -> 10 with ReLU."""
    x = net.op("Flatten", x, name="flatten")
    for index, (inputs, outputs) in enumerate(((64, 128), (128, 64))):
        x = net.gemm(x, f"hidden{index}", inputs, outputs)
        x = net.op("Relu", x, name=f"hidden{index}.relu")
    return net.gemm(x, "classifier", 64, CLASSES)


def resnet(net: Network, x: ir.Value, widths: Sequence[int] = RESNET_WIDTHS) -> ir.Value:
    """A residual network (He et al. 2016), one block per width, projection shortcuts."""
    x = _conv_norm_relu(net, x, "stem", (widths[0], 1, 3, 3))
    inputs = widths[0]
    for index, width in enumerate(widths):
        x = _residual(net, x, f"block{index}", inputs, width)
        inputs = width
    return _classify(net, x, inputs)


def mobilenet(net: Network, x: ir.Value) -> ir.Value:
    """Inverted residuals with linear bottlenecks and ReLU6 (Sandler et al. 2018)."""
    inputs = MOBILENET_STAGES[0][0]
    x = net.conv(x, "stem.conv", (inputs, 1, 3, 3))
    x = net.relu6(net.batch_norm(x, "stem.bn", inputs), "stem.relu6")
    for index, (outputs, stride) in enumerate(MOBILENET_STAGES):
        x = _inverted_residual(net, x, f"block{index}", inputs, outputs, stride)
        inputs = outputs
    x = net.conv(x, "head.conv", (HEAD, inputs, 1, 1))
    x = net.relu6(net.batch_norm(x, "head.bn", HEAD), "head.relu6")
    return _classify(net, x, HEAD)


def _residual(net: Network, x: ir.Value, name: str, inputs: int, width: int) -> ir.Value:
    stride = 1 if inputs == width else 2
    y = _conv_norm_relu(net, x, f"{name}.a", (width, inputs, 3, 3), stride)
    y = net.conv(y, f"{name}.b.conv", (width, width, 3, 3))
    y = net.batch_norm(y, f"{name}.b.bn", width)
    if inputs != width:
        x = net.conv(x, f"{name}.shortcut.conv", (width, inputs, 1, 1), stride)
        x = net.batch_norm(x, f"{name}.shortcut.bn", width)
    return net.op("Relu", net.op("Add", y, x, name=f"{name}.add"), name=f"{name}.relu")


def _inverted_residual(
    net: Network, x: ir.Value, name: str, inputs: int, outputs: int, stride: int
) -> ir.Value:
    hidden = inputs * EXPANSION
    y = net.conv(x, f"{name}.expand.conv", (hidden, inputs, 1, 1))
    y = net.relu6(net.batch_norm(y, f"{name}.expand.bn", hidden), f"{name}.expand.relu6")
    y = net.conv(y, f"{name}.depthwise.conv", (hidden, 1, 3, 3), stride)
    y = net.relu6(net.batch_norm(y, f"{name}.depthwise.bn", hidden), f"{name}.depthwise.relu6")
    y = net.conv(y, f"{name}.project.conv", (outputs, hidden, 1, 1))
    y = net.batch_norm(y, f"{name}.project.bn", outputs)
    if stride == 1 and inputs == outputs:
        return net.op("Add", x, y, name=f"{name}.add")
    return y


def _conv_norm_relu(
    net: Network, x: ir.Value, name: str, shape: tuple[int, int, int, int], stride: int = 1
) -> ir.Value:
    y = net.conv(x, f"{name}.conv", shape, stride)
    return net.op("Relu", net.batch_norm(y, f"{name}.bn", shape[0]), name=f"{name}.relu")


def _classify(net: Network, x: ir.Value, channels: int) -> ir.Value:
    x = net.op("GlobalAveragePool", x, name="pool")
    return net.gemm(net.op("Flatten", x, name="flatten"), "classifier", channels, CLASSES)
