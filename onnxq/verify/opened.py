"""A model file ready to be run and measured, float or quantized, with what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.data.inputs import InputSpec
from onnxq.errors import ModelError
from onnxq.load.inputs import input_specs
from onnxq.session import Arrays, open_session

VERSION_KEY, RECIPE_KEY = "onnxq.version", "onnxq.recipe"


@dataclass(frozen=True)
class OpenedModel:
    """A file that ONNX Runtime runs.

    Attributes:
        path: the file.
        model: its graph; weights may stay on the disk.
        inputs: what it takes.
        size: bytes of the file and of its external data.
    """

    path: Path
    model: ir.Model
    inputs: list[InputSpec]
    size: int

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self.model.metadata_props

    @property
    def is_compressed(self) -> bool:
        """Whether onnxq wrote the file."""
        return VERSION_KEY in self.metadata


def open_model(path: Path) -> OpenedModel:
    """Read a model as it is: nothing is converted, and quantized ones are welcome.

    Raises:
        ModelError: the file can't be read, or ONNX Runtime can't run it.
    """
    try:
        model = ir.load(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelError(
            f"The model '{path}' can't be read ({reason}); give the path of an ONNX file."
        ) from error
    except Exception as error:
        # Protobuf and onnx-ir have no common base class for a file that is not a model.
        raise ModelError(
            f"The file '{path}' is not an ONNX model, or is truncated; give a file that was "
            "exported to ONNX."
        ) from error
    if not len(model.graph):
        raise ModelError(f"The model '{path}' has no nodes; copy or export it again.")
    _check_runs(path)
    return OpenedModel(path, model, input_specs(model), file_size(path, model))


def _check_runs(path: Path) -> None:
    try:
        open_session(path, optimise=False)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"ONNX Runtime can't open the model '{path}' ({reason}); check it with onnx.checker."
        ) from error


def file_size(path: Path, model: ir.Model) -> int:
    """Bytes of a model's file and of the external data that it names."""
    names = {
        Path(value.const_value.path)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return path.stat().st_size + sum(name.stat().st_size for name in names if name.is_file())


def random_feeds(
    inputs: list[InputSpec], batch_size: int, shapes: Mapping[str, tuple[int, ...]]
) -> Arrays:
    """One feed of random values: normal floats, zeros for anything else.

    Args:
        inputs: what the model takes.
        batch_size: what a free first dimension becomes; other free ones are 1.
        shapes: whole shapes by input name, which go before.

    Raises:
        ModelError: a given shape does not fit the input.
    """
    generator = np.random.default_rng(0)
    feeds = {}
    for spec in inputs:
        free = [batch_size if axis == 0 else 1 for axis in range(len(spec.shape))]
        own = tuple(f if dim is None else dim for f, dim in zip(free, spec.shape, strict=True))
        shape = shapes.get(spec.name, own)
        if not spec.fits(shape):
            raise ModelError(
                f"The shape '{','.join(map(str, shape))}' does not fit the input '{spec.name}', "
                f"which takes {spec}; give another with --shape."
            )
        values = generator.standard_normal(shape) if spec.dtype.kind == "f" else np.zeros(shape)
        feeds[spec.name] = values.astype(spec.dtype)
    return feeds
