"""Finding the readable images among many, before any work is based on how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onnxq.data.images import DECODERS, ImageFiles, ImageInput
from onnxq.data.pixels import Stored, check_peak, probe_image
from onnxq.data.source import check_batch, preferred
from onnxq.errors import DataError


def open_image_files(
    paths: Sequence[Path], target: ImageInput, limit: int | None, seed: int, folder: Path
) -> ImageFiles:
    """A source of at most `limit` readable images; broken ones are replaced by others.

    Raises:
        DataError: none is readable, a size does not fit the model, or nothing says how the values
            of an image are scaled.
    """
    wanted = min(limit or len(paths), len(paths))
    order = preferred(len(paths), wanted, seed)
    kept: list[int] = []
    broken: list[tuple[int, str]] = []
    sizes: dict[tuple[int, int], Path] = {}
    found: dict[int, Stored] = {}
    while len(kept) < wanted and order:
        now, order = order[: wanted - len(kept)], order[wanted - len(kept) :]
        for index, image in zip(now, _probe_all([paths[i] for i in now]), strict=True):
            if isinstance(image, str):
                broken.append((index, image))
                continue
            size = target.size_after(image.height, image.width, str(paths[index]))
            sizes.setdefault(size, paths[index])
            kept.append(index)
            found[index] = image
    if not kept:
        first, reason = min(broken)
        raise DataError(
            f"None of the {len(broken)} images in '{folder}' can be read; the first one, "
            f"'{paths[first]}', is broken ({reason}); "
            "give a folder of PNG or JPEG files."
        )
    _check_one_size(sizes, target)
    check_batch(len(kept), target.batch, folder)
    _check_depth(found, paths)
    skipped = [str(paths[i]) for i, _ in sorted(broken)]
    notes = _notes_on_pages(found, paths)
    return ImageFiles([paths[i] for i in sorted(kept)], target, skipped, notes)


def _check_depth(found: Mapping[int, Stored], paths: Sequence[Path]) -> None:
    """Raises DataError where all 16-bit images are so dark that they may be of fewer bits."""
    peaks = {index: image.peak for index, image in found.items() if image.peak is not None}
    if peaks:
        brightest = max(peaks, key=lambda index: peaks[index])
        check_peak(peaks[brightest], f"The images like '{paths[brightest]}'")


def _notes_on_pages(found: Mapping[int, Stored], paths: Sequence[Path]) -> list[str]:
    several = [index for index in sorted(found) if found[index].pages > 1]
    if not several:
        return []
    first = several[0]
    files = "1 file holds" if len(several) == 1 else f"{len(several)} files hold"
    return [
        f"{files} several images, of which the first alone is used: '{paths[first]}' has "
        f"{found[first].pages}"
    ]


def _probe_all(paths: Sequence[Path]) -> Iterator[Stored | str]:
    with ThreadPoolExecutor(DECODERS) as executor:
        yield from executor.map(_probe, paths)


def _probe(path: Path) -> Stored | str:
    """What a readable image is, or why it is not readable."""
    try:
        return probe_image(path)
    except DataError:
        raise
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
