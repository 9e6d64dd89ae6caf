"""Scale and codes of a layer together: the scale whose codes leave the least error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.numerics.error_feedback import Floats, Quadratic, descend, round_with_feedback

FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35)
"""Of the scale at the start, to try."""
ELEMENTS = 2**23
"""Weights that are rounded at once, all factors counted."""


@dataclass(frozen=True)
class Rounded:
    """What was found for a layer.

    Attributes:
        codes: (G, R, K), whole numbers.
        scale: (G, R).
        error: of the form, summed over all rows.
        start_error: the same for the float weights rounded to nearest with the scale at the start.
    """

    codes: Floats
    scale: Floats
    error: float
    start_error: float


def round_layer(
    form: Quadratic, weights: Floats, scale: Floats, limit: int, *, shared: bool
) -> Rounded:
    """The best of several scales, each with its own codes, refined by descent.

    Args:
        form: the squared error of the layer's output.
        weights: the float weights, (G, R, K).
        scale: to start from, (G, R).
        limit: the largest code.
        shared: one scale for all rows.
    """
    factors = np.array(FACTORS)[:, None, None]
    errors = np.concatenate([_errors(form.rows(w), scale[:, w], limit) for w in _slices(form)], 2)
    if shared:
        errors = np.broadcast_to(errors.sum(axis=(1, 2), keepdims=True), errors.shape)
    best = scale * np.take_along_axis(factors, errors.argmin(axis=0)[None], 0)[0]
    parts = [(form.rows(w), best[:, w]) for w in _slices(form)]
    found = [descend(p, round_with_feedback(p, s, limit), s, limit) for p, s in parts]
    codes = np.concatenate(found, axis=1)
    nearest = np.clip(np.rint(weights / scale[..., None]), -limit, limit)
    start = float(form.error(nearest * scale[..., None]).sum())
    return Rounded(codes, best, float(form.error(codes * best[..., None]).sum()), start)


def _slices(form: Quadratic) -> list[slice]:
    """Rows that are worked on at once."""
    groups, rows, columns = form.centre.shape
    step = max(1, ELEMENTS // (groups * columns * len(FACTORS)))
    return [slice(i, i + step) for i in range(0, rows, step)]


def _errors(form: Quadratic, scale: Floats, limit: int) -> Floats:
    """The error of each row with each factor, (factors, G, R)."""
    groups, rows, _ = form.centre.shape
    scales = np.concatenate([factor * scale for factor in FACTORS], axis=1)
    all_rows = form.rows(slice(None), len(FACTORS))
    codes = round_with_feedback(all_rows, scales, limit)
    errors = all_rows.error(codes * scales[..., None])
    return errors.reshape(groups, len(FACTORS), rows).transpose(1, 0, 2)
