"""GPTQ: a layer's weights are rounded in turn, and later ones compensate the error of each.

Every output of Conv, Gemm and MatMul is a sum over a row of inputs, y[r] = sum_k W[r, k] x[k].
Weights are seen as (G, R, K): G groups, R output channels of each, K inputs of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.numerics.quantizers import FloatArray


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    Attributes:
        op_type: Conv, Gemm or MatMul.
        shape: of the weight.
        axis: the weight's axis of output channels.
        groups: of a convolution.
        strides: of a convolution, one per spatial axis.
        dilations: the same.
        pads: begin of each spatial axis, then end of each.
    """

    op_type: str
    shape: tuple[int, ...]
    axis: int
    groups: int = 1
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    def to_rows(self, weight: np.ndarray) -> np.ndarray:
        """A weight as (G, R, K)."""
        if self.op_type == "Conv":
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        return (weight if self.axis == 0 else weight.T)[None]

    def from_rows(self, rows: np.ndarray) -> np.ndarray:
        """(G, R, K) as a weight."""
        if self.op_type == "Conv" or self.axis == 0:
            return rows.reshape(self.shape)
        return np.ascontiguousarray(rows[0].T)

    def places(self, output: tuple[int, ...]) -> int:
        """The number of rows that an output of this shape has."""
        channels = self.shape[self.axis]
        return int(np.prod(output, dtype=np.int64)) // channels

    def outputs(self, y: FloatArray, chosen: np.ndarray) -> FloatArray:
        """Rows of the output, (rows, G, R), at these places."""
        if self.op_type != "Conv":
            return np.asarray(y.reshape(-1, y.shape[-1])[chosen][:, None, :])
        index = np.unravel_index(chosen, (y.shape[0], *y.shape[2:]))
        where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
        return np.asarray(y[where].reshape(len(chosen), self.groups, -1))

    def inputs(self, x: FloatArray, chosen: np.ndarray) -> FloatArray:
        """Rows of the input, (rows, G, K), for the outputs at these places."""
        if self.op_type != "Conv":
            return np.asarray(x.reshape(-1, x.shape[-1])[chosen][:, None, :])
        windows = self._windows(x)
        n = windows.ndim // 2 - 1
        index = np.unravel_index(chosen, (windows.shape[0], *windows.shape[2 : 2 + n]))
        where: tuple[Any, ...] = (index[0], slice(None), *index[1:])
        return np.asarray(windows[where].reshape(len(chosen), self.groups, -1))

    def _windows(self, x: FloatArray) -> np.ndarray:
        """(N, C, *out, *kernel): a view of the padded input."""
        n = x.ndim - 2
        edges = [(0, 0), (0, 0), *zip(self.pads[:n], self.pads[n:], strict=True)]
        padded = np.pad(x, edges) if any(self.pads) else x
        kernel = self.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + n)))
        steps = (slice(None, None, s) for s in self.strides)
        gaps = (slice(None, None, d) for d in self.dilations)
        return np.asarray(windows[(slice(None), slice(None), *steps, *gaps)])


Floats = npt.NDArray[np.float64]

DAMPING = 0.01
"""Least damping, as a share of the mean of H's diagonal (GPTQ)."""
MOST_SHRUNK = 0.9
"""Largest share of a multiple of I in a moment matrix."""
COLUMNS = 32
"""Columns that are rounded before their error is carried to all columns behind them."""
SWEEPS = 4
"""Passes of the descent over all integers, at most."""


@dataclass(frozen=True)
class Quadratic:
    """The squared error of a layer's output as a quadratic form of its weights.

    Attributes:
        hessian: H, (G, K, K), positive definite.
        centre: W*, (G, R, K), the weights of least error.
        order: of the columns of each group, (G, K): those of largest H_jj first.
        feedback: U, (G, K, K), upper triangular: U^T U is H^-1 with its columns in that order.
    """

    hessian: Floats
    centre: Floats
    order: np.ndarray
    feedback: Floats

    @classmethod
    def of(cls, hessian: Floats, centre: Floats) -> Quadratic:
        """The form of these; H is factorised once."""
        order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
        # The factor of a reversed matrix is that of the inverse, reversed.
        last = order[:, ::-1]
        ordered = np.take_along_axis(hessian, last[:, :, None], 1)
        ordered = np.take_along_axis(ordered, last[:, None, :], 2)
        lower = np.linalg.inv(np.linalg.cholesky(ordered))
        return cls(hessian, centre, order, np.triu(lower[:, ::-1, ::-1]))

    def error(self, weights: Floats) -> Floats:
        """(W* - w) H (W* - w)^T of each row, (G, R), for weights (G, R, K)."""
        off = self.centre - weights
        return np.asarray(((off @ self.hessian) * off).sum(axis=-1))

    def rows(self, where: slice, copies: int = 1) -> Quadratic:
        """The form of some rows, maybe repeated."""
        return replace(self, centre=np.tile(self.centre[:, where], (1, copies, 1)))


def quadratic(
    hessian: Floats, cross: Floats, weights: Floats, rows: float, samples: float
) -> Quadratic:
    """The quadratic form, damped where samples are few: W* is then near the float weights.

    The form is H + d I and W* = W + (C - W H) (H + e I)^-1, with d and e of `shrinkage`, and 0.01
    of the mean of H's diagonal at least. What H says of rounding holds for other samples too; what
    C says of W* fits its own samples more closely, and is damped by their number.

    Args:
        hessian: E[x x^T], (G, K, K).
        cross: E[t x^T], (G, R, K).
        weights: W, (G, R, K).
        rows: the number of independent rows behind the means, for d.
        samples: the number of independent samples, for e.
    """
    hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    missing = cross - weights @ hessian
    change = np.linalg.solve(_damped(hessian, samples), missing.transpose(0, 2, 1))
    return Quadratic.of(_damped(hessian, rows), weights + change.transpose(0, 2, 1))


def _damped(hessian: Floats, samples: float) -> Floats:
    """H + d I."""
    size = hessian.shape[-1]
    mean = np.trace(hessian, axis1=1, axis2=2) / size
    # An input that is always zero leaves nothing to divide by.
    least = np.maximum(DAMPING * mean, np.finfo(np.float32).tiny)
    damping = np.maximum(shrinkage(hessian, samples), least)[:, None, None]
    return np.asarray(hessian + damping * np.eye(size))


def shrinkage(hessian: Floats, samples: float) -> Floats:
    """The damping for few samples, (G,): Chen et al., "Shrinkage algorithms", 2010 (OAS).

    The moments of n samples are mixed with a multiple of I, (1 - r) H + r m I, with m the mean of
    the diagonal and r = ((1 - 2/K) tr H^2 + tr^2 H) / ((n + 1 - 2/K) (tr H^2 - tr^2 H / K)). Up to
    a factor of the whole form that is a damping of m r / (1 - r).

    Args:
        hessian: (G, K, K).
        samples: n.
    """
    size = hessian.shape[-1]
    trace = np.trace(hessian, axis1=1, axis2=2)
    squares = np.square(hessian).sum(axis=(1, 2))
    above = (1 - 2 / size) * squares + trace**2
    below = (samples + 1 - 2 / size) * np.maximum(squares - trace**2 / size, 0.0)
    share = np.minimum(above, MOST_SHRUNK * below) / np.where(below > 0, below, 1.0)
    return np.asarray(trace / size * share / (1 - share))


def round_with_feedback(form: Quadratic, scale: Floats, largest: int) -> tuple[Floats, Floats]:
    """Integers (G, R, K) of small error under the form, within +-largest; the error, (G, R).

    Columns are taken in the order of falling H_jj, so that more columns are left to compensate the
    errors that matter most.

    Args:
        form: the quadratic form.
        scale: of each row, (G, R), positive.
        largest: the largest integer.
    """
    # Columns first: all rows of a column lie side by side.
    order = form.order[:, :, None]
    left = np.take_along_axis(form.centre.transpose(0, 2, 1), order, 1)
    integers = np.empty_like(left)
    columns, total = left.shape[1], np.zeros_like(scale)
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        errors = left[:, start:end]
        for j in range(start, end):
            rounded = np.clip(np.rint(left[:, j] / scale), -largest, largest)
            integers[:, j] = rounded
            error = (left[:, j] - rounded * scale) / form.feedback[:, j, j, None]
            left[:, j + 1 : end] -= form.feedback[:, j, j + 1 : end, None] * error[:, None]
            left[:, j] = error
            # W* - w is these errors times U, and U H U^T is I.
            total += error * error
        left[:, end:] -= form.feedback[:, start:end, end:].transpose(0, 2, 1) @ errors
    np.put_along_axis(left, np.broadcast_to(order, left.shape), integers, 1)
    return left.transpose(0, 2, 1), total


def descend(form: Quadratic, integers: Floats, scale: Floats, largest: int) -> Floats:
    """Coordinate descent: each integer in turn takes its best value while the others stay.

    Args:
        form: the quadratic form.
        integers: where to start, (G, R, K).
        scale: of each row, (G, R), positive.
        largest: the largest integer.
    """
    off = (form.centre - integers * scale[..., None]).transpose(0, 2, 1)
    found, slope = integers.transpose(0, 2, 1).copy(), form.hessian @ off
    for _ in range(SWEEPS):
        if not _descend_once(form.hessian, found, slope, scale, largest):
            break
    return found.transpose(0, 2, 1)


def _descend_once(
    hessian: Floats, integers: Floats, slope: Floats, scale: Floats, largest: int
) -> bool:
    """One pass over all columns of integers and slope, (G, K, R), in place; whether any moved."""
    moved, columns = False, integers.shape[1]
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        changes = np.zeros_like(integers[:, start:end])
        inside = slope[:, start:end].copy()
        for j in range(start, end):
            step = inside[:, j - start] / (hessian[:, j, j, None] * scale)
            best = np.clip(np.rint(integers[:, j] + step), -largest, largest)
            change = (best - integers[:, j]) * scale
            if change.any():
                changes[:, j - start], integers[:, j] = change, best
                inside -= hessian[:, start:end, j, None] * change[:, None]
        if changes.any():
            moved = True
            slope -= hessian[:, :, start:end] @ changes
    return moved


FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
"""Of the scale at the start, to try."""
ELEMENTS = 2**23
"""Weights that are rounded at once, all factors counted."""


@dataclass(frozen=True)
class Rounded:
    """The result for a layer.

    Attributes:
        integers: whole numbers as float64, (G, R, K).
        scale: (G, R).
        error: of the form, summed over all rows.
        start_error: the same for the float weights rounded to nearest with the initial scale.
    """

    integers: Floats
    scale: Floats
    error: float
    start_error: float


def round_layer(
    form: Quadratic, weights: Floats, scale: Floats, largest: int, *, shared: bool
) -> Rounded:
    """The best of several scales, each with its own integers, refined by descent.

    Args:
        form: the squared error of the layer's output.
        weights: the float weights, (G, R, K).
        scale: to start from, (G, R).
        largest: the largest integer.
        shared: one scale for all rows.
    """
    factors = np.array(FACTORS)[:, None, None]
    errors = np.concatenate([_errors(form.rows(w), scale[:, w], largest) for w in _slices(form)], 2)
    if shared:
        errors = np.broadcast_to(errors.sum(axis=(1, 2), keepdims=True), errors.shape)
    best = scale * np.take_along_axis(factors, errors.argmin(axis=0)[None], 0)[0]
    parts = [(form.rows(w), best[:, w]) for w in _slices(form)]
    found = [descend(p, round_with_feedback(p, s, largest)[0], s, largest) for p, s in parts]
    integers = np.concatenate(found, axis=1)
    nearest = np.clip(np.rint(weights / scale[..., None]), -largest, largest)
    start = float(form.error(nearest * scale[..., None]).sum())
    return Rounded(integers, best, float(form.error(integers * best[..., None]).sum()), start)


def _slices(form: Quadratic) -> list[slice]:
    """Slices of rows that are computed at once."""
    groups, rows, columns = form.centre.shape
    step = max(1, ELEMENTS // (groups * columns * len(FACTORS)))
    return [slice(i, i + step) for i in range(0, rows, step)]


def _errors(form: Quadratic, scale: Floats, largest: int) -> Floats:
    """The error of each row with each factor, (factors, G, R)."""
    groups, rows, _ = form.centre.shape
    scales = np.concatenate([factor * scale for factor in FACTORS], axis=1)
    all_rows = form.rows(slice(None), len(FACTORS))
    _, errors = round_with_feedback(all_rows, scales, largest)
    return errors.reshape(groups, len(FACTORS), rows).transpose(1, 0, 2)
