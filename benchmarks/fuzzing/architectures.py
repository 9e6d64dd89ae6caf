"""Small networks of the kinds that people export, each drawn from a generator of numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuzzing.graph_writer import GraphWriter

ACTIVATIONS = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "clip", "swish", "prelu", "none")


def activation(w: GraphWriter, x: str, channels: int, rank: int) -> str:
    """One of the activations."""
    kind = str(w.rng.choice(ACTIVATIONS, p=[0.4, 0.1, 0.05, 0.05, 0.05, 0.1, 0.1, 0.05, 0.1]))
    if kind == "none":
        return x
    if kind == "clip":
        return w.node("Clip", [x, w.scalar(0.0), w.scalar(6.0)])
    if kind == "swish":
        return w.node("Mul", [x, w.node("Sigmoid", [x])])
    if kind == "prelu":
        slope = w.floats(channels, *([1] * (rank - 2)), low=0.05, high=0.3)
        return w.node("PRelu", [x, slope])
    return w.node(kind, [x])


def conv(w: GraphWriter, x: str, before: int, after: int, rank: int, stride: int = 1) -> str:
    """A convolution that keeps the size but for the stride, with or without BatchNormalization."""
    size = int(w.rng.choice([1, 3]))
    groups = [1, 1, before] if after % before == 0 else [1]
    group = int(w.rng.choice(groups))
    weight = w.weight(after, before // group, *([size] * (rank - 2)))
    normed = w.rng.random() < 0.4
    inputs = [x, weight] if normed or w.rng.random() < 0.2 else [x, weight, w.floats(after)]
    attributes: dict[str, object] = {"group": group, "strides": [stride] * (rank - 2)}
    if w.rng.random() < 0.8:
        attributes |= {"pads": [size // 2] * (2 * (rank - 2))}
    else:
        attributes |= {"auto_pad": "SAME_UPPER"}
    if w.rng.random() < 0.7:
        attributes |= {"kernel_shape": [size] * (rank - 2)}
    y = w.node("Conv", inputs, **attributes)
    return batch_norm(w, y, after) if normed else y


def batch_norm(w: GraphWriter, x: str, channels: int) -> str:
    """BatchNormalization with the statistics that training leaves."""
    scale, shift = w.floats(channels, low=0.6, high=1.4), w.floats(channels)
    mean, variance = w.floats(channels), w.floats(channels, low=0.5, high=1.5)
    return w.node("BatchNormalization", [x, scale, shift, mean, variance])


def linear(w: GraphWriter, x: str, before: int, after: int) -> str:
    """A fully connected layer: Gemm, transposed or not, or MatMul with or without Add."""
    if w.rng.random() < 0.5:
        turned = bool(w.rng.random() < 0.7)
        shape = (after, before) if turned else (before, after)
        inputs = [x, w.weight(*shape, fan_in=before), w.floats(after)]
        factors = {"alpha": 0.5, "beta": 2.0} if w.rng.random() < 0.15 else {}
        return w.node("Gemm", inputs, transB=int(turned), **factors)
    return dense(w, x, before, after)


def dense(w: GraphWriter, x: str, before: int, after: int) -> str:
    """MatMul with or without Add, for any rank."""
    y = w.node("MatMul", [x, w.weight(before, after, fan_in=before)])
    return w.node("Add", [y, w.floats(after)]) if w.rng.random() < 0.8 else y


def _features(w: GraphWriter, rank: int) -> tuple[str, int]:
    """A convolutional body over an image or a signal: its last tensor and that one's channels."""
    channels = int(w.rng.integers(1, 5))
    side = int(w.rng.choice([8, 9, 12]))
    x, width = w.input([channels, *([side] * (rank - 2))]), int(w.rng.choice([16, 24, 32]))
    x = activation(w, conv(w, x, channels, width, rank), width, rank)
    for _ in range(int(w.rng.integers(1, 4))):
        x, width = _block(w, x, width, rank)
    return x, width


def _block(w: GraphWriter, x: str, width: int, rank: int) -> tuple[str, int]:
    kind = str(w.rng.choice(["plain", "residual", "concat", "pool", "excite", "split"]))
    if kind == "pool":
        op = str(w.rng.choice(["MaxPool", "AveragePool"]))
        x = w.node(op, [x], kernel_shape=[2] * (rank - 2), strides=[2] * (rank - 2))
        return activation(w, conv(w, x, width, width, rank), width, rank), width
    y = activation(w, conv(w, x, width, width, rank), width, rank)
    if kind == "residual":
        return activation(w, w.node("Add", [x, y]), width, rank), width
    if kind == "concat":
        return w.node("Concat", [x, y], axis=1), 2 * width
    if kind == "excite":
        means = w.node("GlobalAveragePool", [y])
        gate = w.node("Sigmoid", [conv(w, means, width, width, rank)])
        return w.node("Mul", [y, gate]), width
    if kind == "split":
        left, right = w.split(y, 1, [width // 2, width - width // 2])
        return w.node("Concat", [right, left], axis=1), width
    return y, width


def _pooled(w: GraphWriter, x: str, rank: int) -> str:
    if w.rng.random() < 0.4:
        return w.mean(x, list(range(2, rank)), False)
    return w.node("Flatten", [w.node("GlobalAveragePool", [x])])


def classifier(w: GraphWriter) -> None:
    """Images to logits."""
    x, width = _features(w, 4)
    w.output(linear(w, _pooled(w, x, 4), width, int(w.rng.integers(5, 40))), 2)


def signal(w: GraphWriter) -> None:
    """A signal to logits, by convolutions over one dimension."""
    x, width = _features(w, 3)
    w.output(linear(w, _pooled(w, x, 3), width, int(w.rng.integers(5, 40))), 2)


def heads(w: GraphWriter) -> None:
    """Images to two outputs by one shared convolution, as a detector has it."""
    x, width = _features(w, 4)
    weight, bias = w.weight(width, width, 1, 1), w.floats(width)
    first = w.node("Relu", [w.node("Conv", [x, weight, bias])])
    second = w.node("Relu", [w.node("Conv", [first, weight, bias])])
    w.output(linear(w, _pooled(w, first, 4), width, 12), 2)
    w.output(linear(w, _pooled(w, second, 4), width, 4), 2)


def dense_prediction(w: GraphWriter) -> None:
    """Images to images, twice as large."""
    x, width = _features(w, 4)
    if w.rng.random() < 0.5:
        weight = w.weight(width, width, 2, 2, fan_in=width)
        x = w.node("ConvTranspose", [x, weight], strides=[2, 2])
    else:
        scales = w.constant(np.array([1, 1, 2, 2], np.float32), "scales")
        # Before opset 13 the region of interest is no option.
        roi = "" if w.opset >= 13 else w.constant(np.array([], np.float32), "roi")
        x = w.node("Resize", [x, roi, scales], mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="asymmetric")  # fmt: skip
    w.output(conv(w, w.node("Relu", [x]), width, 3, 4), 4)


def perceptron(w: GraphWriter) -> None:
    """Rows to rows."""
    width = int(w.rng.integers(8, 65))
    x = w.input([width])
    for _ in range(int(w.rng.integers(1, 4))):
        after = int(w.rng.choice([16, 33, 64, 100]))
        x, width = activation(w, linear(w, x, width, after), after, 2), after
    w.output(linear(w, x, width, int(w.rng.integers(1, 20))), 2)


def attention(w: GraphWriter) -> None:
    """A block of a transformer over a sequence of vectors."""
    length, width = int(w.rng.integers(3, 9)), int(w.rng.choice([16, 32, 48]))
    w.output(_pooled_tokens(w, _transformer(w, w.input([length, width]), length, width), width), 2)


def _transformer(w: GraphWriter, x: str, length: int, width: int) -> str:
    count, size = 4, width // 4
    split_heads = w.integers(0, length, count, size)

    def head(perm: list[int]) -> str:
        y = w.node("Reshape", [dense(w, x, width, width), split_heads])
        return w.node("Transpose", [y], perm=perm)

    queries, keys, values = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    scores = w.node("Mul", [w.node("MatMul", [queries, keys]), w.scalar(size**-0.5)])
    mixed = w.node("MatMul", [w.node("Softmax", [scores], axis=3), values])
    joined = w.node("Reshape", [w.node("Transpose", [mixed], perm=[0, 2, 1, 3]),
                                w.integers(0, length, width)])  # fmt: skip
    x = w.layer_norm(w.node("Add", [x, dense(w, joined, width, width)]), width)
    hidden = dense(w, x, width, 2 * width)
    scaled = w.node("Erf", [w.node("Mul", [hidden, w.scalar(0.5**0.5)])])
    factor = w.node("Mul", [w.node("Add", [scaled, w.scalar(1.0)]), w.scalar(0.5)])
    y = dense(w, w.node("Mul", [hidden, factor]), 2 * width, width)
    return w.layer_norm(w.node("Add", [x, y]), width)


def _pooled_tokens(w: GraphWriter, x: str, width: int) -> str:
    return linear(w, w.mean(x, [1], False), width, int(w.rng.integers(4, 30)))


def language(w: GraphWriter) -> None:
    """Tokens to logits, by a table of vectors."""
    length, width = int(w.rng.integers(3, 9)), int(w.rng.choice([16, 32]))
    tokens = int(w.rng.integers(40, 200))
    table = w.weight(tokens, width, fan_in=4)
    x = w.node("Gather", [table, w.input([length], tokens)])
    if w.rng.random() < 0.5:
        x = _transformer(w, x, length, width)
    w.output(_pooled_tokens(w, x, width), 2)


def recurrent(w: GraphWriter) -> None:
    """A sequence of vectors through LSTM, GRU or RNN, and a layer."""
    length, before, width = int(w.rng.integers(3, 8)), int(w.rng.integers(4, 17)), 24
    kind = str(w.rng.choice(["LSTM", "GRU", "RNN"]))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    x = w.node("Transpose", [w.input([length, before])], perm=[1, 0, 2])
    weights = [w.weight(1, gates * width, each, fan_in=each) for each in (before, width)]
    inputs = [x, *weights, w.floats(1, 2 * gates * width)]
    _, last = w.nodes_outputs(kind, inputs, 2, hidden_size=width)
    w.output(linear(w, w.squeeze(last, 0), width, 60), 2)


def two_inputs(w: GraphWriter) -> None:
    """An image and a row to one row."""
    x, width = _features(w, 4)
    row = w.node("Relu", [linear(w, w.input([10]), 10, 32)])
    joined = w.node("Concat", [_pooled(w, x, 4), row], axis=1)
    w.output(linear(w, joined, width + 32, 20), 2)


ARCHITECTURES: dict[str, Callable[[GraphWriter], None]] = {
    each.__name__: each
    for each in (
        classifier,
        signal,
        heads,
        dense_prediction,
        perceptron,
        attention,
        language,
        recurrent,
        two_inputs,
    )
}
"""Each adds one network to a writer, inputs and outputs included."""
