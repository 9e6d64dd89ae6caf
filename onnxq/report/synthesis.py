"""Made images to look at: a contact sheet, the losses, the classes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from onnxq.report.bars import MOST_BARS, Bar
from onnxq.report.chart import Chart, Line, make_curve
from onnxq.synthesise.made import Synthesis

COLUMNS = 8
"""Images beside each other."""
SIDE = 64
"""Pixels of a picture's longer side at least; small images are shown by whole factors."""
MOST_SIDE = 128
"""Pixels of a picture's longer side at most."""
GAP, CAPTION = 4, 12
"""Pixels between pictures, and of the line below each."""

HEIGHT = 140
"""Of a curve, pixels."""
COLOUR = "#2f6db0"

TITLES = {
    "inception": "inception score loss",
    "bn": "BatchNorm statistics, KL divergence in nats",
    "bn-moments": "BatchNorm statistics, moments",
    "adversarial": "adversarial loss, minus the student's cross-entropy",
}
"""What each loss is called."""
LATER = ", while the student learned"
"""Of a generator that went on learning."""


def contact_sheet(synthesis: Synthesis) -> bytes | None:
    """A PNG of the pictures with the class of each below; None where there are none."""
    if synthesis.pictures is None or not len(synthesis.pictures):
        return None
    tiles = [_tile(picture) for picture in synthesis.pictures]
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    step = (width + GAP, height + GAP + CAPTION)
    sheet = Image.new("RGB", (COLUMNS * step[0] + GAP, rows * step[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        left, top = GAP + i % COLUMNS * step[0], GAP + i // COLUMNS * step[1]
        sheet.paste(tile, (left, top))
        if synthesis.decisions:
            draw.text((left, top + height), str(synthesis.decisions[i]), fill="black")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def loss_curves(synthesis: Synthesis) -> list[tuple[str, Chart]]:
    """Title and curve of each loss, by minutes; by steps where learning goes on beside it."""
    found = [
        (TITLES[kind], list(zip(synthesis.minutes, values, strict=True)))
        for kind, values in synthesis.losses.items()
    ]
    found += [
        (f"{TITLES[kind]}{LATER}", [(float(step), value) for step, value in enumerate(values)])
        for kind, values in synthesis.tuning.items()
    ]
    return [
        (title, make_curve(Line(title, points, COLOUR), HEIGHT))
        for title, points in found
        if len(points) > 1
    ]


def class_bars(classes: Sequence[int]) -> list[Bar]:
    """Images by class, in order; of many classes those with the most."""
    largest = sorted(range(len(classes)), key=lambda c: (-classes[c], c))[:MOST_BARS]
    top = max(classes, default=0) or 1
    return [
        Bar(f"class {c}", str(classes[c]), classes[c] / top, classes[c] / top)
        for c in sorted(largest)
    ]


def _tile(picture: np.ndarray) -> Image.Image:
    """One picture in a size to look at."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
    longer = max(image.size)
    if longer < SIDE:
        factor = -(-SIDE // longer)
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    return image
