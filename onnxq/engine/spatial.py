"""Gradients of pools and of operators that rearrange or enlarge images; G = dL/dy."""

from __future__ import annotations

import math

from onnxq.engine.definition import MICROSOFT, Attribute, Definition, Form, Rule


def _average_pool(form: Form, d: Definition) -> None:
    """Each pixel takes G / count of every window that covers it; G = dL/dy.

    The sum over windows is a transposed convolution with ones, one channel at a time. A
    window's count is its size, without the padding where `count_include_pad` is 0.
    """
    kernel, strides, pads = _window(form)
    extra = _surplus(form) or []
    share = d.op("Mul", d.gradient(), d.scalar(1 / math.prod(kernel)))
    if any(pads) and not form.node.attributes.get_int("count_include_pad", 0):
        share = d.op("Div", share, _covered(form, d))
    one_channel = d.op("Reshape", share, d.integers([-1, 1] + [0] * len(kernel)))
    ones = d.op("Expand", d.scalar(1.0), d.integers([1, 1, *kernel]))
    attributes = {"strides": strides, "pads": pads, "output_padding": extra}
    spread = d.op("ConvTranspose", one_channel, ones, attributes=attributes)
    d.result(0, d.op("Reshape", spread, d.op("Shape", d.input(0))))


def _covered(form: Form, d: Definition) -> str:
    """The share of each window that lies on the image, (1, 1, ...)."""
    kernel, strides, pads = _window(form)
    sizes = [size for size in _spatial(form) if isinstance(size, int)]
    image = d.op("Expand", d.scalar(1.0), d.integers([1, 1, *sizes]))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    return d.op("AveragePool", image, attributes=attributes, count_include_pad=1)


def _window(form: Form) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and pads, with the operator's defaults."""
    kernel = list(form.node.attributes.get_ints("kernel_shape", []))
    strides = list(form.node.attributes.get_ints("strides", [1] * len(kernel)))
    return kernel, strides, list(form.node.attributes.get_ints("pads", [0] * (2 * len(kernel))))


def _spatial(form: Form) -> list[object]:
    return list(form.dimensions(form.node.inputs[0]) or ())[2:]


def _surplus(form: Form) -> list[int] | None:
    """Pixels at the end of each dimension that no window covers; None where not known."""
    kernel, strides, pads = _window(form)
    sizes = _spatial(form)
    if all(stride == 1 for stride in strides) and not any(pads):
        return [0] * len(kernel)
    if len(sizes) != len(kernel):
        return None
    surplus = []
    for axis, (size, window, stride) in enumerate(zip(sizes, kernel, strides, strict=True)):
        if not isinstance(size, int):
            return None
        surplus.append((size + pads[axis] + pads[axis + len(kernel)] - window) % stride)
    return surplus


def _refuse_average_pool(form: Form) -> str | None:
    if form.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "with auto_pad its windows depend on its input; write it as explicit pads"
    if form.node.attributes.get_int("ceil_mode", 0):
        return "with ceil_mode its last window reaches over the edge"
    if any(size != 1 for size in form.node.attributes.get_ints("dilations", [])):
        return "it is dilated"
    if _surplus(form) is None:
        return "the size of its input is not known"
    return None


def pooling_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {"AveragePool": Rule(_average_pool, _refuse_average_pool)}


HALF_PIXEL = ("half_pixel", "pytorch_half_pixel")


def _conv_transpose(form: Form, d: Definition) -> None:
    """Dx = Conv(G, W);  dW = the weight gradient of that convolution;  db = sum G."""
    x, weights = d.input(0), d.input(1)
    spatial = (form.rank(0) or 2) - 2
    attributes: dict[str, Attribute] = {
        "strides": list(form.node.attributes.get_ints("strides", [1] * spatial)),
        "dilations": list(form.node.attributes.get_ints("dilations", [1] * spatial)),
        "pads": list(form.node.attributes.get_ints("pads", [0] * (2 * spatial))),
        "group": form.node.attributes.get_int("group", 1),
    }
    d.result(0, d.op("Conv", d.gradient(), weights, attributes=attributes))
    gradients = d.ops(
        2, "ConvGrad", x, d.gradient(), weights, domain=MICROSOFT, attributes=attributes
    )
    d.result(1, gradients[1])
    if form.has(2):
        others = [axis for axis in range(spatial + 2) if axis != 1]
        d.result(2, d.reduce("ReduceSum", d.gradient(), others))


def _refuse_conv_transpose(form: Form) -> str | None:
    attributes = form.node.attributes
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or attributes.get_ints(
        "output_shape"
    ):
        return "its padding is automatic; write it as explicit pads"
    if form.rank(0) is None:
        return "the rank of its input is not known"
    if form.wanted & {1} and not form.wanted & {0}:
        return "its input carries no gradient"
    return None


def _depth_to_space(form: Form, d: Definition) -> None:
    """The inverse rearrangement of G."""
    size = form.node.attributes.get_int("blocksize", 1)
    if form.node.attributes.get_string("mode", "DCR") == "DCR":
        d.result(0, d.op("SpaceToDepth", d.gradient(), blocksize=size))
        return
    # (N, C, H b, W b) -> (N, C, H b, W, b) -> (N, C, W, b, H, b) -> (N, C, b, b, H, W)
    columns = d.op("Reshape", d.gradient(), d.integers([0, 0, 0, -1, size]))
    columns = d.op("Transpose", columns, perm=[0, 1, 3, 4, 2])
    cells = d.op("Reshape", columns, d.integers([0, 0, 0, 0, -1, size]))
    cells = d.op("Transpose", cells, perm=[0, 1, 5, 3, 4, 2])
    d.result(0, d.op("Reshape", cells, d.op("Shape", d.input(0))))


def _space_to_depth(form: Form, d: Definition) -> None:
    size = form.node.attributes.get_int("blocksize", 1)
    d.result(0, d.op("DepthToSpace", d.gradient(), blocksize=size))


def _resize(form: Form, d: Definition) -> None:
    """Each pixel takes the sum of G over the block that it became."""
    factors = _factors(form) or []
    mean = d.op("AveragePool", d.gradient(), kernel_shape=factors, strides=factors)
    d.result(0, d.op("Mul", mean, d.scalar(math.prod(factors))))


def _factors(form: Form) -> list[int] | None:
    """Whole spatial factors of a Resize of an (N, C, ...) tensor; None where they aren't."""
    scales = form.constant(2)
    if scales is not None and scales.size:
        ratios = [float(scale) for scale in scales]
    else:
        before, after = form.dimensions(form.node.inputs[0]), form.constant(3)
        if before is None or after is None:
            return None
        # A free dimension can't be resized by a constant size to a whole factor.
        ratios = [b / a if isinstance(a, int) else 0.0 for a, b in zip(before, after, strict=True)]
    if len(ratios) < 3 or ratios[:2] != [1, 1] or not all(r >= 1 and r == int(r) for r in ratios):
        return None
    return [int(ratio) for ratio in ratios[2:]]


def _refuse_resize(form: Form) -> str | None:
    mode = form.node.attributes.get_string("mode", "nearest")
    if mode != "nearest":
        return f"mode '{mode}' has no gradient, only 'nearest' by whole factors"
    if _factors(form) is None:
        return "it does not enlarge height and width by constant whole factors"
    position = form.node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = form.node.attributes.get_string("nearest_mode", "round_prefer_floor")
    rounded = rounding in ("round_prefer_floor", "round_prefer_ceil")
    if (position in HALF_PIXEL and rounded) or (position == "asymmetric" and rounding == "floor"):
        return None
    return f"it maps pixels by '{position}' and '{rounding}', not to blocks"


def spatial_rules() -> dict[str, Rule]:
    """The rules of this module by operator."""
    return {
        "ConvTranspose": Rule(_conv_transpose, _refuse_conv_transpose),
        "DepthToSpace": Rule(_depth_to_space),
        "Resize": Rule(_resize, _refuse_resize),
        "SpaceToDepth": Rule(_space_to_depth),
    }
