"""Rounding with error feedback: each weight makes up for the errors of those rounded before it.

A layer's output is linear in its weights, y = W x. With the second moments H = E[x x^T] and
C = E[t x^T] of its inputs x and of the outputs t that are wanted, the squared error of codes q is

    E |t - s q x|^2 = const + (W* - s q) H (W* - s q)^T,   W* = C H^-1

a quadratic form that is the same for every row but for its centre W*. Weights are rounded one
after the other; those that are still free move to where the error of the rounded ones is best
made up for (Frantar et al., "GPTQ", 2023, equations 2 and 3, from Optimal Brain Surgeon). Then
single codes are moved as long as that lowers the form (coordinate descent; Behdin et al.,
"QuantEase", 2023). Where x is measured behind quantized layers and t in the float model, W*
mends their errors too.

Shapes: G groups of a convolution, R rows (output channels of a group), K inputs of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAMPING = 0.01
"""Least damping, as a share of the mean of H's diagonal (GPTQ)."""
MOST_SHRUNK = 0.9
"""Largest share of a multiple of I in a moment matrix."""
COLUMNS = 64
"""Columns that are rounded before their error is carried to all columns behind them."""
SWEEPS = 4
"""Passes of the descent over all codes, at most."""


@dataclass(frozen=True)
class Quadratic:
    """The squared error of a layer's output as a quadratic form of its weights.

    Attributes:
        hessian: H, (G, K, K), positive definite.
        inverse: H^-1, the same shape.
        centre: W*, (G, R, K), the weights of least error.
    """

    hessian: Floats
    inverse: Floats
    centre: Floats

    def error(self, weights: Floats) -> Floats:
        """(W* - w) H (W* - w)^T of each row, (G, R), for weights (G, R, K)."""
        off = self.centre - weights
        return np.asarray(((off @ self.hessian) * off).sum(axis=-1))

    def rows(self, where: slice, copies: int = 1) -> Quadratic:
        """The form of some rows, which may be repeated: row by row in each copy."""
        centre = np.tile(self.centre[:, where], (1, copies, 1))
        return Quadratic(self.hessian, self.inverse, centre)


def quadratic(hessian: Floats, cross: Floats, weights: Floats, samples: float) -> Quadratic:
    """The form, damped where samples are few: that pulls W* to the float weights.

    H + d I and W* = (C + d W) (H + d I)^-1, with d of `shrinkage`, and 0.01 of the mean of H's
    diagonal at least.

    Args:
        hessian: E[x x^T], (G, K, K).
        cross: E[t x^T], (G, R, K).
        weights: W, (G, R, K).
        samples: how many independent rows H is the mean of.
    """
    hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    size = hessian.shape[-1]
    mean = np.trace(hessian, axis1=1, axis2=2) / size
    # An input that is always zero leaves nothing to divide by.
    least = np.maximum(DAMPING * mean, np.finfo(np.float32).tiny)
    damping = np.maximum(shrinkage(hessian, samples), least)[:, None, None]
    damped = hessian + damping * np.eye(size)
    inverse = np.linalg.inv(damped)
    inverse = (inverse + inverse.transpose(0, 2, 1)) / 2
    return Quadratic(damped, inverse, (cross + damping * weights) @ inverse)


def shrinkage(hessian: Floats, samples: float) -> Floats:
    """The damping that few samples call for, (G,): Chen et al., "Shrinkage algorithms", 2010 (OAS).

    The moments of n samples are mixed with a multiple of I, (1 - r) H + r m I, with m the mean
    of the diagonal and r = ((1 - 2/K) tr H^2 + tr^2 H) / ((n + 1 - 2/K) (tr H^2 - tr^2 H / K)).
    Up to a factor of the whole form that is a damping of m r / (1 - r).

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


def round_with_feedback(form: Quadratic, scale: Floats, limit: int) -> Floats:
    """Codes (G, R, K) of small error under the form, whole numbers within +-limit.

    Columns are taken in the order of falling H_jj: more of them are left to make up for the
    errors that weigh most.

    Args:
        form: the quadratic form.
        scale: of each row, (G, R), positive.
        limit: the largest code.
    """
    order = np.argsort(-np.diagonal(form.hessian, axis1=1, axis2=2), axis=1, kind="stable")
    inverse = np.take_along_axis(form.inverse, order[:, :, None], 1)
    inverse = np.take_along_axis(inverse, order[:, None, :], 2)
    feedback = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    left = np.take_along_axis(form.centre, order[:, None, :], 2)
    codes = np.empty_like(left)
    columns = left.shape[-1]
    for start in range(0, columns, COLUMNS):
        end = min(start + COLUMNS, columns)
        errors = np.empty((*left.shape[:2], end - start))
        for j in range(start, end):
            codes[..., j] = np.clip(np.rint(left[..., j] / scale), -limit, limit)
            error = (left[..., j] - codes[..., j] * scale) / feedback[:, None, j, j]
            left[..., j:end] -= error[..., None] * feedback[:, None, j, j:end]
            errors[..., j - start] = error
        left[..., end:] -= errors @ feedback[:, start:end, end:]
    found = np.empty_like(codes)
    np.put_along_axis(found, np.broadcast_to(order[:, None, :], codes.shape), codes, 2)
    return found


def descend(form: Quadratic, codes: Floats, scale: Floats, limit: int) -> Floats:
    """Codes of no larger error: each in turn takes its best value, the others fixed.

    Args:
        form: the quadratic form.
        codes: where to start, (G, R, K).
        scale: of each row, (G, R), positive.
        limit: the largest code.
    """
    codes = codes.copy()
    slope = (form.centre - codes * scale[..., None]) @ form.hessian
    for _ in range(SWEEPS):
        moved = False
        for j in range(codes.shape[-1]):
            step = slope[..., j] / (form.hessian[:, None, j, j] * scale)
            best = np.clip(np.rint(codes[..., j] + step), -limit, limit)
            change = best - codes[..., j]
            if change.any():
                moved = True
                codes[..., j] = best
                slope -= (change * scale)[..., None] * form.hessian[:, None, j, :]
        if not moved:
            break
    return codes
