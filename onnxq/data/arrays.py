"""A model's inputs, and arrays of samples matched to them by name and shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from onnxq.errors import DataError, UnreadableError
from onnxq.runtime.dataset import Samples, spread
from onnxq.runtime.session import Arrays


@dataclass(frozen=True)
class InputSpec:
    """Name, dtype and shape of one model input.

    Attributes:
        name: the graph input's name.
        dtype: the element type of the arrays fed.
        shape: one entry per dimension; None is a free one. A free first dimension is the batch.
        original_dtype: the type in the model's file, where that is a float of another width.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    original_dtype: np.dtype | None = None

    @property
    def is_float(self) -> bool:
        """Whether it takes floats of any width, bfloat16 among them."""
        return is_float(self.dtype)

    def takes(self, dtype: np.dtype) -> bool:
        """Whether arrays of this dtype are accepted: floats of 16 and 32 bits are converted."""
        # numpy takes None for float64.
        original = self.dtype if self.original_dtype is None else self.original_dtype
        if dtype in (self.dtype, original):
            return True
        return self.is_float and is_float(dtype) and dtype.itemsize <= 4

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be fed."""
        return len(shape) == len(self.shape) and all(
            want is None or want == found for want, found in zip(self.shape, shape, strict=True)
        )

    def fits_sample(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape holds rows of samples, however many."""
        return InputSpec(self.name, self.dtype, (None, *self.shape[1:])).fits(shape)

    def __str__(self) -> str:
        """The dtype and shape as a user reads them: `float32 (N, 3, ?, ?)`."""
        dims = [str(dim) if dim is not None else "?" for dim in self.shape]
        if self.shape and self.shape[0] is None:
            dims[0] = "N"
        return f"{(self.original_dtype or self.dtype).name} {shape_text(dims)}"


def is_float(dtype: np.dtype) -> bool:
    """Whether the dtype is a float, bfloat16 among them, which numpy does not know as one."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def shape_text(dims: Sequence[object]) -> str:
    """Dimensions in brackets, as Python prints a tuple."""
    return f"({', '.join(str(dim) for dim in dims)}{',' if len(dims) == 1 else ''})"


def fixed_batch(inputs: Sequence[InputSpec]) -> int | None:
    """The batch size that all inputs fix in their first dimension; None if there is none."""
    sizes = {spec.shape[0] if spec.shape else None for spec in inputs}
    return sizes.pop() if len(sizes) == 1 else None


def has_sample_axis(inputs: Sequence[InputSpec]) -> bool:
    """Whether the first dimension of every input can be the axis of samples.

    It can't where an input is a scalar or a state of its own length. Nor where all inputs are
    vectors: a free length there is that of a sequence.
    """
    sizes = {spec.shape[0] if spec.shape else -1 for spec in inputs}
    return len(sizes) == 1 and -1 not in sizes and any(len(s.shape) > 1 for s in inputs)


UNNAMED = frozenset(("", "arr_0"))
"""Names of an array that was given none: in a `.npy`, and by `numpy.savez`."""

_CHUNK = 1 << 22
"""Elements looked at in one go when searching for NaN."""


def read_arrays(path: Path) -> Arrays:
    """The arrays in a `.npz` by name, or the one in a `.npy` under the name ''.

    A `.npy` is mapped, not read.

    Raises:
        UnreadableError: the file is not of that form, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        # numpy leaves a file open that it opened itself and that turns out to be broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        # numpy, zipfile and the decompressors raise whatever they stumble on in a broken file.
        raise UnreadableError(
            f"Can't read arrays from '{path}': {_reason(error)}; expected a file written by "
            "numpy without Python objects: write it again or remove it."
        ) from error
    for name, array in arrays.items():
        # What an archive holds beside arrays comes as bytes.
        if not isinstance(array, np.ndarray):
            raise UnreadableError(
                f"'{name}' in '{path}' is no array; expected a file written by numpy: remove what "
                "is no array from it."
            )
    return arrays


def _reason(error: Exception) -> str:
    text = str(error)
    if "pickled" in text:
        # What numpy says of any file that begins as none of its own.
        return "it begins as no file of arrays does"
    return text.split(". ")[0].splitlines()[0].rstrip(".") if text else type(error).__name__


def match_inputs(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], path: Path
) -> Arrays:
    """The arrays by input name, each of the kind of numbers that the model takes.

    Floats may have another width: `as_taken` converts them. A single array without a name is that
    of a model's only input.

    Raises:
        DataError: an input has no array, or one of another kind of numbers.
    """
    if len(inputs) == 1 and len(arrays) == 1 and arrays.keys() <= UNNAMED:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    for spec in inputs:
        if spec.name not in arrays:
            named = (f"'{name}'" if name else "one without a name" for name in arrays)
            found = ", ".join(named) or "no array"
            raise DataError(
                f"'{path}' has no array for the model's input '{spec.name}': found {found}, "
                f"expected arrays named {', '.join(repr(s.name) for s in inputs)}: rename them."
            )
        _check_dtype(arrays[spec.name], spec, path)
    return {spec.name: arrays[spec.name] for spec in inputs}


def as_samples(arrays: Arrays, inputs: Sequence[InputSpec], path: Path) -> Arrays | None:
    """The arrays with samples along their first axis; None where they are one whole feed.

    An array without the first dimension of its input is one sample.

    Raises:
        DataError: a shape does not fit the model's input.
    """
    rows: Arrays = {}
    for spec in inputs:
        array = arrays[spec.name]
        if array.ndim == len(spec.shape) - 1 and spec.fits_sample((1, *array.shape)):
            array = array[None]
        if not spec.fits_sample(array.shape):
            raise _shape_error(array, spec, path)
        rows[spec.name] = array
    return rows if len({len(array) for array in rows.values()}) == 1 else None


def check_feed(arrays: Arrays, inputs: Sequence[InputSpec], path: Path) -> None:
    """Raises DataError where the arrays can't be fed to the model unchanged."""
    for spec in inputs:
        if not spec.fits(arrays[spec.name].shape):
            raise _shape_error(arrays[spec.name], spec, path)


def as_taken(arrays: Arrays, inputs: Sequence[InputSpec]) -> Arrays:
    """The arrays with floats of the model's width."""
    dtypes = {spec.name: spec.dtype for spec in inputs}
    return {k: v.astype(dtypes.get(k, v.dtype), copy=False) for k, v in arrays.items()}


def check_finite(array: np.ndarray, spec: InputSpec, path: Path) -> None:
    """Raises DataError where the array holds NaN or infinity, in its own type or in the model's."""
    if not is_float(array.dtype):
        return
    step = max(1, _CHUNK // max(1, array[:1].size)) if array.ndim else 1
    parts = (array[i : i + step] for i in range(0, len(array), step)) if array.ndim else (array,)
    for part in parts:
        if not np.isfinite(part).all():
            found = "NaN" if np.isnan(part).any() else "infinity"
            raise DataError(
                f"The array '{spec.name}' in '{path}' holds {found}; expected finite numbers: "
                "repair or remove it."
            )
        with np.errstate(over="ignore"):
            fits = np.isfinite(part.astype(spec.dtype, copy=False)).all()
        if not fits:
            raise DataError(
                f"The array '{spec.name}' in '{path}' holds numbers beyond {spec.dtype.name}, "
                "which the model takes; scale or remove them."
            )


def _check_dtype(array: np.ndarray, spec: InputSpec, path: Path) -> None:
    if not spec.takes(array.dtype):
        hint = "; name a uint8 NHWC array 'images' to have it preprocessed"
        raise DataError(
            f"The array for the input '{spec.name}' in '{path}' is {array.dtype.name} "
            f"{shape_text(array.shape)}; expected {spec}"
            f"{hint if array.dtype == np.uint8 else ''}."
        )


def _shape_error(array: np.ndarray, spec: InputSpec, path: Path) -> DataError:
    return DataError(
        f"The array for the input '{spec.name}' in '{path}' has the shape "
        f"{shape_text(array.shape)}; expected {spec}."
    )


def preferred(total: int, n: int, seed: int) -> list[int]:
    """All positions: first n that are spread evenly, then the others in random order."""
    chosen = spread(total, n, seed)
    others = np.setdiff1d(np.arange(total), chosen)
    return [*chosen.tolist(), *np.random.default_rng(seed).permutation(others).tolist()]


def check_batch(total: int, batch: int | None, path: Path) -> None:
    """Raises DataError where there are fewer samples than the model's fixed batch takes."""
    needed = batch or 1
    if total < needed:
        raise DataError(
            f"'{path}' holds {total} samples; the model takes batches of {needed}: give more."
        )


def open_stack(
    arrays: Mapping[str, np.ndarray],
    inputs: Sequence[InputSpec],
    path: Path,
    limit: int | None,
    seed: int,
) -> Samples | None:
    """Whole feeds from arrays, where at least one has one axis more than its input; else None.

    Beside it, an input of one row may have its rows stacked: (64, 8) are 64 feeds of (1, 8).

    Raises:
        DataError: an array holds NaN or infinity.
    """
    counts = {
        len(arrays[spec.name])
        for spec in inputs
        if arrays[spec.name].ndim and _is_one_feed(spec) and spec.fits(arrays[spec.name].shape[1:])
    }
    count = counts.pop() if len(counts) == 1 else 0
    if not count:
        return None
    stacked: Arrays = {}
    shared: Arrays = {}
    for spec in inputs:
        array = arrays[spec.name]
        feeds = _feeds(array, spec)
        if feeds is not None and len(feeds) == count:
            stacked[spec.name] = feeds
        elif spec.fits(array.shape):
            shared[spec.name] = np.asarray(array)
        else:
            return None
        check_finite(array, spec, path)
    if limit is not None and count > limit:
        chosen = spread(count, limit, seed)
        stacked = {name: each[chosen] for name, each in stacked.items()}
        count = limit
    return Samples(partial(_read_stack, stacked, shared), np.arange(count), batch=1)


def _read_stack(stacked: Arrays, shared: Arrays, places: Iterable[np.ndarray]) -> Iterator[Arrays]:
    """One feed for each place along the first axis; what has no such axis is part of each."""
    for (place,) in places:
        yield {name: np.asarray(each[place]) for name, each in stacked.items()} | shared


def _is_one_feed(spec: InputSpec) -> bool:
    """Whether the input has no batch, so that an array of its own rank is one feed."""
    return not spec.shape or spec.shape[0] is not None


def _feeds(array: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """The array indexed by the feed; None where it is no stack of feeds."""
    if array.ndim and spec.fits(array.shape[1:]):
        return array
    rows = array[:, None] if array.ndim else array
    return rows if array.ndim and spec.fits(rows.shape[1:]) else None
