"""The handwritten digits of scikit-learn, split and written as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from onnxq.data.preprocess import Preprocess

PREPROCESS = Preprocess(mean=(0.3053,), std=(0.376,))
LABELLED, UNLABELLED = 300, 600


@dataclass(frozen=True)
class Digits:
    """Images (N, 8, 8) uint8 and their classes (N,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __getitem__(self, part: slice) -> Digits:
        return Digits(self.images[part], self.labels[part])

    @classmethod
    def joined(cls, *parts: Digits) -> Digits:
        """All images of the parts, in order."""
        images, labels = ([getattr(p, field) for p in parts] for field in ("images", "labels"))
        return cls(np.concatenate(images), np.concatenate(labels))

    def inputs(self) -> np.ndarray:
        """The images as the sample models take them: (N, 1, 8, 8) float32."""
        return PREPROCESS.normalise(self.images[..., None])


def labelled_and_rest() -> tuple[Digits, Digits]:
    """The images kept for measuring, and all others, in a fixed random order."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    digits = Digits(images[order], data.target[order].astype(np.int64))
    return digits[slice(LABELLED)], digits[slice(LABELLED, None)]


def write_images(folder: Path) -> None:
    """Write ``labelled/<class>/*.png`` and ``unlabelled/*.png``; the two share no image."""
    labelled, rest = labelled_and_rest()
    for index, (image, label) in enumerate(zip(labelled.images, labelled.labels, strict=True)):
        _write(image, folder / "labelled" / str(label) / f"{index:03}.png")
    for index, image in enumerate(rest.images[:UNLABELLED]):
        _write(image, folder / "unlabelled" / f"{index:03}.png")


def _write(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, optimize=True)
