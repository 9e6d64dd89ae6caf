"""Gradients of element-wise operators, and the sums that undo broadcasting."""

from __future__ import annotations

from onnxq.engine.definition import Definition, Form, Rule


def broadcast_axes(form: Form, index: int) -> list[int] | None:
    """Axes of the output along which an input was repeated; None where shapes don't say.

    Free dimensions with the same name are equal.
    """
    operand = form.dimensions(form.node.inputs[index])
    output = form.dimensions(form.node.outputs[0])
    if operand is None or output is None or len(operand) > len(output):
        return None
    missing = len(output) - len(operand)
    axes = list(range(missing))
    for axis, dimension in enumerate(operand, start=missing):
        if dimension == output[axis]:
            continue
        if dimension != 1:
            return None
        axes.append(axis)
    return axes


def unbroadcast(form: Form, definition: Definition, gradient: str, index: int) -> str:
    """A gradient in the output's shape, summed to the shape of an input."""
    axes = broadcast_axes(form, index)
    assert axes is not None
    if not axes:
        return gradient
    summed = definition.reduce("ReduceSum", gradient, axes, keepdims=1)
    return definition.op("Reshape", summed, definition.op("Shape", definition.input(index)))


def unknown_broadcast(form: Form) -> str | None:
    """Why gradients can't be summed to the shapes of the inputs."""
    if any(broadcast_axes(form, index) is None for index in form.wanted):
        return "the shapes that it broadcasts are not known"
    return None


SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


def _straight_through(form: Form, d: Definition) -> None:
    """Straight-through, dx = G, as if a step were the identity (Bengio et al. 2013)."""
    d.result(0, d.gradient())


def _clip(form: Form, d: Definition) -> None:
    """Dx = G m inside; each bound takes the G of the elements that it replaced."""
    x = d.input(0)
    above = [d.op("Sub", x, d.input(1))] if form.has(1) else []
    below = [d.op("Sub", d.input(2), x)] if form.has(2) else []
    distance = d.op("Mul", *above, *below) if above and below else "".join(above or below)
    passed = d.op("Mul", d.gradient(), d.positive(distance)) if distance else d.gradient()
    d.result(0, passed)
    for index, inner in ((1, above), (2, below)):
        if inner:
            outside = d.positive(d.op("Neg", inner[0]))
            d.result(index, d.total(d.op("Mul", d.gradient(), outside)))


def _hard_sigmoid(form: Form, d: Definition) -> None:
    """Dx = alpha G m where 0 < y < 1."""
    slope = d.scalar(form.node.attributes.get_float("alpha", 0.2))
    d.result(0, d.op("Mul", d.op("Mul", d.gradient(), slope), _inside_unit(d, d.output())))


def _hard_swish(form: Form, d: Definition) -> None:
    """Y = x clip(u, 0, 1), u = x / 6 + 1/2: dx = G (clip(u, 0, 1) + m x / 6)."""
    sixth = d.op("Mul", d.input(0), d.scalar(1 / 6))
    u = d.op("Add", sixth, d.scalar(0.5))
    clipped = d.op("Clip", u, d.scalar(0.0), d.scalar(1.0))
    slope = d.op("Add", clipped, d.op("Mul", sixth, _inside_unit(d, u)))
    d.result(0, d.op("Mul", d.gradient(), slope))


def _softplus(form: Form, d: Definition) -> None:
    """Dx = G sigmoid(x)."""
    d.result(0, d.op("Mul", d.gradient(), d.op("Sigmoid", d.input(0))))


def _softsign(form: Form, d: Definition) -> None:
    """Dx = G / (1 + |x|)^2."""
    size = d.op("Add", d.op("Abs", d.input(0)), d.scalar(1.0))
    d.result(0, d.op("Div", d.op("Div", d.gradient(), size), size))


def _mish(form: Form, d: Definition) -> None:
    """Y = x t, t = tanh(softplus(x)): dx = G (t + x (1 - t^2) sigmoid(x))."""
    x = d.input(0)
    t = d.op("Tanh", d.op("Softplus", x))
    rest = d.op("Sub", d.scalar(1.0), d.op("Mul", t, t))
    tail = d.op("Mul", d.op("Mul", x, rest), d.op("Sigmoid", x))
    d.result(0, d.op("Mul", d.gradient(), d.op("Add", t, tail)))


def _exponential(
    form: Form, d: Definition, positive_slope: float, factor: float, offset: float
) -> None:
    """Dx = G positive_slope above zero, G (factor y + offset) below: Elu, Selu and Celu."""
    mask = d.positive(d.input(0))
    below = d.op("Add", d.op("Mul", d.output(), d.scalar(factor)), d.scalar(offset))
    kept = d.op("Mul", mask, d.scalar(positive_slope))
    rest = d.op("Mul", d.op("Sub", d.scalar(1.0), mask), below)
    d.result(0, d.op("Mul", d.gradient(), d.op("Add", kept, rest)))


def _elu(form: Form, d: Definition) -> None:
    _exponential(form, d, 1.0, 1.0, form.node.attributes.get_float("alpha", 1.0))


def _selu(form: Form, d: Definition) -> None:
    gamma = form.node.attributes.get_float("gamma", SELU_GAMMA)
    _exponential(form, d, gamma, 1.0, gamma * form.node.attributes.get_float("alpha", SELU_ALPHA))


def _celu(form: Form, d: Definition) -> None:
    _exponential(form, d, 1.0, 1.0 / form.node.attributes.get_float("alpha", 1.0), 1.0)


def _thresholded_relu(form: Form, d: Definition) -> None:
    """Dx = G where x > alpha."""
    distance = d.op("Sub", d.input(0), d.scalar(form.node.attributes.get_float("alpha", 1.0)))
    d.result(0, d.op("Mul", d.gradient(), d.positive(distance)))


def _prelu(form: Form, d: Definition) -> None:
    """Dx = G where x > 0, G slope elsewhere; dslope = sum of G x where x <= 0."""
    x, slope = d.input(0), d.input(1)
    mask = d.positive(x)
    rest = d.op("Sub", d.scalar(1.0), mask)
    factor = d.op("Add", mask, d.op("Mul", rest, slope))
    d.result(0, d.op("Mul", d.gradient(), factor))
    if 1 in form.wanted:
        spread = d.op("Mul", d.op("Mul", d.gradient(), x), rest)
        d.result(1, unbroadcast(form, d, spread, 1))


def _sum(form: Form, d: Definition) -> None:
    """Every input takes G, summed to its shape."""
    for index in form.wanted:
        d.result(index, unbroadcast(form, d, d.gradient(), index))


def _where(form: Form, d: Definition) -> None:
    """Each branch takes the G of the elements that came from it."""
    zero = d.scalar(0.0)
    for index in form.wanted:
        branch = (d.gradient(), zero) if index == 1 else (zero, d.gradient())
        d.result(index, unbroadcast(form, d, d.op("Where", d.input(0), *branch), index))


def _training_dropout(form: Form) -> str | None:
    if (form.has(2) and (mode := form.constant(2)) is None) or (form.has(2) and bool(mode)):
        return "it drops values at random"
    return None


def _inside_unit(d: Definition, value: str) -> str:
    """1 where 0 < value < 1."""
    return d.positive(d.op("Mul", value, d.op("Sub", d.scalar(1.0), value)))


def elementwise_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    steps = dict.fromkeys(("Round", "Floor", "Ceil", "Sign"), Rule(_straight_through))
    return steps | {
        "Celu": Rule(_celu),
        "Clip": Rule(_clip),
        "Dropout": Rule(_straight_through, _training_dropout),
        "Elu": Rule(_elu),
        "HardSigmoid": Rule(_hard_sigmoid),
        "HardSwish": Rule(_hard_swish),
        "Mish": Rule(_mish),
        "PRelu": Rule(_prelu, unknown_broadcast),
        "Selu": Rule(_selu),
        "Softplus": Rule(_softplus),
        "Softsign": Rule(_softsign),
        "Sum": Rule(_sum, unknown_broadcast),
        "ThresholdedRelu": Rule(_thresholded_relu),
        "Where": Rule(_where, unknown_broadcast),
    }
