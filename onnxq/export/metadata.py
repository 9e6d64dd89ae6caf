"""What a written model says of itself, its own size among it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxq.data.preprocess import METADATA_KEY as PREPROCESS_KEY
from onnxq.data.preprocess import Preprocess
from onnxq.export.save import model_bytes
from onnxq.load.structure import COMPRESSED_KEY
from onnxq.options.recipe import METADATA_KEY as RECIPE_KEY
from onnxq.options.recipe import Recipe
from onnxq.version import VERSION

MOST_DESCRIPTIONS = 6
"""Until metadata that states the size of its file is right: a digit or a note more is bytes more.
"""


def own_metadata(
    recipe: Recipe, preprocess: Preprocess | None, *, spelt_out: bool
) -> dict[str, str]:
    """The metadata of a compressed model beside its metrics.

    Args:
        recipe: the options that it was made with.
        preprocess: how an image becomes its input; None where nobody said it.
        spelt_out: whether options at their defaults are stated too.
    """
    entries = {COMPRESSED_KEY: VERSION, RECIPE_KEY: recipe.to_json(spelt_out=spelt_out)}
    return entries | preprocess_metadata(preprocess)


def preprocess_metadata(preprocess: Preprocess | None) -> dict[str, str]:
    """The entry that says how an image becomes the input; none where nobody said it."""
    return {} if preprocess is None else {PREPROCESS_KEY: preprocess.to_json()}


def add_metadata(model: ir.Model, entries: Mapping[str, str]) -> None:
    """Put the entries among the model's own, in place, in sorted order."""
    merged = {**model.metadata_props, **entries}
    model.metadata_props.clear()
    model.metadata_props.update(sorted(merged.items()))


def describe(model: ir.Model, entries: Callable[[int], Mapping[str, str]]) -> int:
    """Put metadata into a model, in place, of which an entry may state the size of the file.

    Args:
        model: the one that is written next.
        entries: the metadata for a file of so many bytes.

    Returns:
        Those bytes.
    """
    size = model_bytes(model)
    for _ in range(MOST_DESCRIPTIONS):
        stated = size
        add_metadata(model, entries(stated))
        size = model_bytes(model)
        if size == stated:
            break
    return size
