"""Fixed batches, freed where the model computes each sample by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.cut import moved_by_inputs
from onnxq.graph.editor import Editor
from onnxq.graph.facts import (
    DEFAULT_DOMAINS,
    axes_of,
    constant,
    input_at,
    is_constant,
    is_op,
    rank,
    static_dim,
)
from onnxq.graph.scaled_weight import weight_array
from onnxq.load.interface import input_specs, random_feeds
from onnxq.load.read import run_model
from onnxq.normalise.infer_shapes import InferShapes
from onnxq.normalise.passes import PassResult
from onnxq.numerics.distances import Outputs, find_difference
from onnxq.runtime.session import Arrays, Feeds

CheckFeeds = Callable[[int], Feeds] | Sequence[Feeds] | None
"""A function from the batch size to a feed, feeds themselves, or None for random ones."""


def given_feeds(model: ir.Model, source: CheckFeeds, batch: int) -> list[Feeds]:
    """The feeds to check a model on.

    Args:
        model: the model, for the inputs of random feeds.
        source: where the feeds come from.
        batch: batch size to ask a function for.
    """
    if source is None:
        return [random_feeds(input_specs(model), batch)]
    return [source(batch)] if callable(source) else list(source)


def pieces_of(feeds: Sequence[Feeds], size: int) -> list[Feeds]:
    """The same feeds cut into batches of `size`, where they can be cut."""
    pieces: list[Feeds] = []
    for feed in feeds:
        parts = split_batch(feed, size)
        pieces.extend([feed] if parts is None else parts)
    return pieces


def split_batch(feeds: Feeds, size: int) -> list[Arrays] | None:
    """Feeds of `size` samples each; None where the arrays can't be cut along one batch."""
    if not feeds or any(array.ndim == 0 for array in feeds.values()):
        return None
    lengths = {array.shape[0] for array in feeds.values()}
    if len(lengths) != 1 or (length := lengths.pop()) % size:
        return None
    return [
        {name: array[start : start + size] for name, array in feeds.items()}
        for start in range(0, length, size)
    ]


def join_batches(feeds: Sequence[Feeds]) -> Arrays:
    """One feed of all samples."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def vary(feeds: Feeds) -> Arrays:
    """Another feed of the same dtypes: every array reversed, floats a tenth as large."""
    return {name: _varied(array) for name, array in feeds.items()}


def _varied(array: np.ndarray) -> np.ndarray:
    backwards = np.ascontiguousarray(array.reshape(-1)[::-1].reshape(array.shape))
    is_float = np.issubdtype(array.dtype, np.floating)
    return (backwards * 0.1).astype(array.dtype) if is_float else backwards


BATCH = "N"
"""The name of the freed dimension."""


class FreeBatch:
    """Makes the fixed first dimension of all inputs and outputs a symbol.

    A Reshape to a constant shape that starts with the fixed batch takes it from its input instead.
    The caller has to check that the result computes each sample by itself: shapes alone do not show
    it.

    Args:
        size: the batch that the graph was written for; None means that of the inputs.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def __call__(self, model: ir.Model) -> PassResult:
        """The model and whether anything was freed."""
        size = self.size or fixed_batch(model)
        if size is None:
            return PassResult(model, modified=False)
        editor = Editor(model.graph)
        nodes = [node for node in model.graph if is_op(node, "Reshape")]
        freed = [_free_reshape(editor, node, size) for node in nodes]
        values = [*model.graph.inputs, *batch_outputs(model)]
        freed += [_free_value(value, size) for value in values]
        if any(freed):
            _forget_shapes(model)
        return PassResult(model, any(freed))


def fixed_batch(model: ir.Model) -> int | None:
    """The first dimension that all inputs and outputs share, if it is a fixed number.

    Outputs that depend on no sample have none.
    """
    values = [*model.graph.inputs, *batch_outputs(model)]
    sizes = {static_dim(value, 0) for value in values}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if size is not None and size > 0 else None


def batch_outputs(model: ir.Model) -> list[ir.Value]:
    """The outputs that depend on the samples; a table of anchors has no batch."""
    moved = moved_by_inputs(model.graph)
    return [value for value in model.graph.outputs if value in moved]


def fix_batch(model: ir.Model, size: int) -> None:
    """Declare the free first dimension of all inputs fixed, in place; nothing inside changes."""
    for value in model.graph.inputs:
        if value.shape and not static_batch(value):
            value.shape = ir.Shape([size, *list(value.shape)[1:]])


def has_free_batch(model: ir.Model) -> bool:
    """Whether the first dimension of all inputs is declared free."""
    return all(
        value.shape is not None and len(value.shape) > 0 and not static_batch(value)
        for value in model.graph.inputs
    )


def static_batch(value: ir.Value) -> bool:
    """Whether the first dimension is a number above 0; some exporters write 0 for free."""
    size = static_dim(value, 0)
    return size is not None and size > 0


def _free_reshape(editor: Editor, node: ir.Node, size: int) -> bool:
    shape = constant(input_at(node, 1))
    if shape is None or shape.ndim != 1 or shape.size == 0 or shape[0] != size:
        return False
    if weight_array(node.inputs[0]) is not None or node.attributes.get_int("allowzero"):
        return False
    free = shape.copy()
    free[0] = 0 if static_dim(node.inputs[0], 0) == size or -1 in shape else -1
    node.replace_input_with(1, editor.initializer(f"{node.name}_shape", free.astype(np.int64)))
    return True


def _free_value(value: ir.Value, size: int) -> bool:
    if value.shape is None or static_dim(value, 0) != size:
        return False
    value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])
    return True


def _forget_shapes(model: ir.Model) -> None:
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FreedBatch:
    """The result of freeing the batch.

    Attributes:
        model: the model to use.
        batch_free: whether it takes a batch of any size.
        original_size: the only batch size that the original takes; None if that is any, or if its
            inputs share no batch.
        notes: sentences for the user.
    """

    model: ir.Model
    batch_free: bool
    original_size: int | None = None
    notes: tuple[str, ...] = ()


def free_and_verify_batch(
    model: ir.Model, source: CheckFeeds, clean: Callable[[ir.Model], ir.Model]
) -> FreedBatch:
    """Free a fixed batch, and keep the result only if it computes each sample by itself.

    A batch of two feeds must give the outputs of the two feeds. Where it does not, it is tried once
    more on a copy whose computed shapes are folded: those that were computed from constants can be
    freed then.

    Args:
        model: runs on the feeds; only the shapes of its values are changed.
        source: feeds, as for `normalise`.
        clean: a copy of a model with constants folded.
    """
    InferShapes()(model)
    size = fixed_batch(model)
    if size is None:
        return _verify_declared(model, source)
    pieces = _two_pieces(model, source, size)
    if pieces is None:
        note = f"The batch of {size} stays fixed: its inputs share no batch."
        return FreedBatch(model, False, notes=(note,))
    reason = None
    for copy in (ir.Model.clone, clean):
        freed = FreeBatch()(copy(model)).model
        found = _batch_difference(model, freed, pieces)
        if found is None:
            return FreedBatch(freed, True, size)
        reason = reason or found
    note = f"The batch of {size} stays fixed, since with a free one {reason}."
    return FreedBatch(model, False, size, (note,))


def _verify_declared(model: ir.Model, source: CheckFeeds) -> FreedBatch:
    pieces = _two_pieces(model, source, 1) if has_free_batch(model) else None
    if pieces is None:
        sizes = {static_dim(value, 0) for value in model.graph.inputs}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        how = f"in batches of {size}" if size is not None and size > 1 else "one by one"
        note = f"Samples are run {how}: the inputs and outputs share no batch."
        return FreedBatch(model, False, size or None, (note,))
    reason = _batch_difference(model, model, pieces)
    if reason is None:
        return FreedBatch(model, True)
    # Some exporters declare the batch free and write it as 1 inside.
    freed = FreeBatch(size=1)(model.clone()).model
    if _batch_difference(model, freed, pieces) is None:
        return FreedBatch(freed, True, 1)
    note = f"Samples are run one by one, since in a batch {reason}."
    return FreedBatch(model, False, 1, (note,))


def _two_pieces(model: ir.Model, source: CheckFeeds, size: int) -> list[Arrays] | None:
    pieces: list[Arrays] = []
    for feed in given_feeds(model, source, batch=2 * size):
        parts = split_batch(feed, size)
        if parts is None:
            return None
        pieces.extend(parts)
    # A much weaker second sample shows what leaks from one sample into the other.
    return [pieces[0], vary(pieces[min(1, len(pieces) - 1)])]


def _batch_difference(model: ir.Model, freed: ir.Model, pieces: Sequence[Arrays]) -> str | None:
    if (mixing := _mixes_samples(model)) is not None:
        return f"'{mixing.name}' ({mixing.op_type}) reduces over all samples"
    try:
        alone = run_model(model, pieces, optimise=False)
        together = run_model(freed, [join_batches(pieces)], optimise=False)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        logger.debug("the batch is not free: %s", error)
        return "it does not run"
    compared = batch_outputs(model)
    places = [i for i, value in enumerate(model.graph.outputs) if value in compared]
    alone, together = ([[run[i] for i in places] for run in runs] for runs in (alone, together))
    joined = _join(alone)
    if joined is None:
        return "its outputs are no batches"
    names = [str(model.graph.outputs[i].name) for i in places]
    return find_difference(names, [joined], together)


def _mixes_samples(model: ir.Model) -> ir.Node | None:
    """A node that reduces floats over the first axis; a check on few samples may miss it."""
    for node in model.graph:
        if not node.op_type.startswith("Reduce") or node.domain not in DEFAULT_DOMAINS:
            continue
        source = node.inputs[0]
        size = rank(source)
        if source is None or is_constant(source) or source.dtype not in FLOATS:
            continue
        axes = axes_of(node, size or 1)
        if (axes is None and input_at(node, 1) is None) or (size and axes and 0 in axes):
            return node
    return None


def _join(runs: Sequence[Outputs]) -> Outputs | None:
    joined: Outputs = []
    for parts in zip(*runs, strict=True):
        if not all(isinstance(part, np.ndarray) and part.ndim for part in parts):
            return None
        # Where the samples decide how many rows there are, nobody could tell whose they are.
        if len({part.shape for part in parts}) != 1:
            return None
        joined.append(np.concatenate(parts))
    return joined
