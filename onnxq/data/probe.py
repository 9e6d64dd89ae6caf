"""Finding the readable images among many, before any work is based on how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from onnxq.data.images import DECODERS, ImageFiles, ImageInput
from onnxq.data.preprocess import to_mode
from onnxq.data.source import check_batch, preferred
from onnxq.errors import DataError


def open_image_files(
    paths: Sequence[Path], target: ImageInput, limit: int | None, seed: int, folder: Path
) -> ImageFiles:
    """A source of at most `limit` readable images; broken ones are replaced by others.

    Raises:
        DataError: none is readable, or a size does not fit the model.
    """
    wanted = min(limit or len(paths), len(paths))
    order = preferred(len(paths), wanted, seed)
    kept: list[int] = []
    broken: list[tuple[int, str]] = []
    sizes: dict[tuple[int, int], Path] = {}
    while len(kept) < wanted and order:
        now, order = order[: wanted - len(kept)], order[wanted - len(kept) :]
        for index, found in zip(now, _probe_all([paths[i] for i in now]), strict=True):
            if isinstance(found, str):
                broken.append((index, found))
                continue
            sizes.setdefault(target.size_after(*found, str(paths[index])), paths[index])
            kept.append(index)
    if not kept:
        first, reason = min(broken)
        raise DataError(
            f"None of the {len(broken)} images in '{folder}' can be read; the first one, "
            f"'{paths[first]}', is broken ({reason}); "
            "give a folder of PNG or JPEG files."
        )
    _check_one_size(sizes, target)
    check_batch(len(kept), target.batch, folder)
    skipped = [str(paths[i]) for i, _ in sorted(broken)]
    return ImageFiles([paths[i] for i in sorted(kept)], target, skipped)


def _probe_all(paths: Sequence[Path]) -> Iterator[tuple[int, int] | str]:
    with ThreadPoolExecutor(DECODERS) as executor:
        yield from executor.map(_probe, paths)


def _probe(path: Path) -> tuple[int, int] | str:
    """Height and width of a readable image, or why it is not readable."""
    try:
        with Image.open(path) as image:
            size = image.height, image.width
            # JPEG: all is parsed, an eighth is computed.
            image.draft(None, (1, 1))
            image.load()
            if image.mode not in ("RGB", "L"):
                to_mode(image, "RGB")
            return size
    # A decoder raises whatever it stumbles on in a broken file.
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
        return (
            text.replace(f" file '{path}'", "").replace(str(path), path.name)
            or type(error).__name__
        )


def _check_one_size(sizes: dict[tuple[int, int], Path], target: ImageInput) -> None:
    """Images of several sizes can't share a batch."""
    if len(sizes) > 1 and target.batch != 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise DataError(
            f"The image '{first}' is {one[0]}×{one[1]} and '{second}' is {other[0]}×{other[1]} "
            "(height×width); expected one size for all: give --resize and --crop."
        )
