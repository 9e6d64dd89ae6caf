"""Labelled samples, for `evaluate` only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.data.arrays import InputSpec, read_arrays
from onnxq.data.preprocess import Preprocess
from onnxq.data.samples import find_files, open_arrays, open_files
from onnxq.errors import DataError
from onnxq.runtime.dataset import Samples, spread

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class Labelled:
    """Samples with the class of each.

    Attributes:
        samples: the samples.
        labels: class indices, int64 `(samples.count,)`.
    """

    samples: Samples
    labels: np.ndarray

    def take(self, n: int, seed: int = 0) -> Labelled:
        """At most n of them, chosen as `Samples.take` does."""
        n = max(n, self.samples.batch or 1)
        if n >= self.samples.count:
            return self
        chosen = spread(self.samples.count, n, seed)
        return Labelled(self.samples.subset(chosen), self.labels[chosen])


def open_labelled(
    path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> Labelled:
    """The samples and labels in a folder or an `.npz`.

    A folder has either `labels.csv` with rows `file,label`, or a sub-folder for each class, whose
    sorted names are the class indices (names that are all numbers are sorted as numbers). An `.npz`
    has the array `labels` beside those of the samples.

    Raises:
        DataError: there are no labels, or the samples don't fit the model.
    """
    path = Path(path)
    if path.is_dir():
        listed = _listed(path) if (path / LABELS_FILE).is_file() else _by_folder(path)
        return _open_listed(listed, inputs, preprocess, path)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _open_npz(path, inputs, preprocess)
    raise DataError(
        f"'{path}' is not labelled data; expected a folder with a sub-folder per class or with "
        f"'{LABELS_FILE}', or an .npz with the array 'labels'."
    )


def _open_npz(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Labelled:
    arrays = read_arrays(path)
    if "labels" not in arrays:
        found = ", ".join(f"'{name}'" for name in arrays)
        raise DataError(f"'{path}' has no array 'labels': found {found}; add one.")
    labels = arrays.pop("labels").reshape(-1)
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"The array 'labels' in '{path}' is {labels.dtype.name}; expected integer classes."
        )
    source = open_arrays(arrays, inputs, preprocess, None, 0, path)
    return _labelled(source, labels.astype(np.int64), path)


def _open_listed(
    listed: dict[Path, int],
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    folder: Path,
) -> Labelled:
    samples = open_files(list(listed), inputs, preprocess, None, 0, folder)
    skipped = set(samples.skipped)
    labels = [label for path, label in listed.items() if str(path) not in skipped]
    return _labelled(samples, np.array(labels, np.int64), folder)


def _labelled(samples: Samples, labels: np.ndarray, path: Path) -> Labelled:
    if samples.count != len(labels):
        raise DataError(
            f"'{path}' holds {samples.count} samples and {len(labels)} labels; "
            "expected one label for each sample."
        )
    return Labelled(samples, labels)


def _listed(folder: Path) -> dict[Path, int]:
    """Files and labels of `labels.csv`, in its order; a heading `file,label` is optional."""
    listing = folder / LABELS_FILE
    try:
        rows = list(csv.reader(listing.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"Can't read the labels in '{listing}': {error}.") from error
    listed: dict[Path, int] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and [cell.strip() for cell in row] == ["file", "label"]):
            continue
        name, label = _parse_row(row, listing, number)
        if not (folder / name).is_file():
            raise DataError(
                f"'{listing}' line {number} names '{name}', which is not in '{folder}'."
            )
        listed[folder / name] = label
    if not listed:
        raise DataError(f"'{listing}' lists no file; expected rows of 'file,label'.")
    return listed


def _parse_row(row: list[str], listing: Path, number: int) -> tuple[str, int]:
    cells = [cell.strip() for cell in row]
    if len(cells) != 2 or not cells[1].isdecimal():
        raise DataError(
            f"'{listing}' line {number} is '{','.join(row)}'; expected 'file,label' with an "
            "integer label."
        )
    return cells[0], int(cells[1])


def _by_folder(folder: Path) -> dict[Path, int]:
    """Files with the index of the sub-folder of `folder` that holds them."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise DataError(
            f"The folder '{folder}' has no labels; expected a sub-folder per class, or "
            f"'{LABELS_FILE}' with rows of 'file,label'."
        )
    numbers = all(name.isdecimal() for name in names)
    names.sort(key=lambda name: (int(name) if numbers else 0, name))
    classes = {name: index for index, name in enumerate(names)}
    paths = [path for path in find_files(folder) if path.parent != folder]
    return {path: classes[path.relative_to(folder).parts[0]] for path in paths}
