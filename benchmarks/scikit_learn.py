"""scikit-learn against our own arithmetic: k-means in one dimension, Ward's merging, shrinkage.

    python benchmarks/scikit_learn.py [--assets FOLDER] [--out FILE]

Errors of k-means are weighted squared errors on the points that a codebook is fitted to, as a
ratio to ours. scikit-learn is a development dependency: the tool itself does not import it.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from models import ASSETS, subjects
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.covariance import oas
from sklearn.feature_extraction.image import grid_to_graph

from onnxq.load.model import load_model
from onnxq.numerics import kmeans as ours
from onnxq.numerics.gptq import shrinkage
from onnxq.numerics.kmeans import Floats, Points, collect_points, lasting_cuts

COUNTS = (4, 16, 64, 256)
SUBJECTS = ("resnet20", "shufflenet", "mobilenet")
STEPS, SEED = 300, 0
REPEATS = 50
GROUPS = 2048
Fit = Callable[[Points, int], Floats]


def error(points: Points, centroids: Floats) -> float:
    """Sum of w (x - nearest centroid)^2."""
    centroids = np.sort(centroids)
    borders = (centroids[1:] + centroids[:-1]) / 2
    far = points.values - centroids[np.searchsorted(borders, points.values)]
    return float((points.weights * far * far).sum())


def means(points: Points, cuts: np.ndarray) -> Floats:
    """The weighted mean of each interval."""
    total = np.add.reduceat(points.weights, cuts)
    return np.add.reduceat(points.weights * points.values, cuts) / total


def merged(points: Points, count: int) -> Floats:
    """Our start: what Ward's merging leaves."""
    return means(points, np.sort(np.append(0, lasting_cuts(points)[: count - 1])))


def own(points: Points, count: int) -> Floats:
    """Ours: merging, the best cuts in windows, Lloyd's steps over sums."""
    return ours.kmeans(points, [count])[count]


def lloyd(points: Points, count: int, init: Floats | str, tolerance: float = 1e-4) -> Floats:
    """scikit-learn's k-means, one start, with weights."""
    found = KMeans(count, init=init, n_init=1, max_iter=STEPS, tol=tolerance, random_state=SEED)
    found.fit(points.values[:, None], sample_weight=points.weights)
    return found.cluster_centers_[:, 0]


def from_our_start(points: Points, count: int) -> Floats:
    """scikit-learn's, from what merging leaves."""
    return lloyd(points, count, merged(points, count)[:, None])


def to_the_end(points: Points, count: int) -> Floats:
    """The same, until no centroid moves."""
    return lloyd(points, count, merged(points, count)[:, None], 0.0)


def from_its_start(points: Points, count: int) -> Floats:
    """scikit-learn's, from k-means++."""
    return lloyd(points, count, "k-means++")


def its_ward(points: Points, count: int) -> Floats:
    """scikit-learn's Ward on a chain of groups, which takes no weights."""
    starts = np.unique(np.arange(GROUPS) * points.values.size // GROUPS)
    chain = grid_to_graph(starts.size, 1)
    model = AgglomerativeClustering(count, linkage="ward", connectivity=chain)
    labels = model.fit_predict(means(points, starts)[:, None])
    return means(points, starts[np.append(0, np.flatnonzero(np.diff(labels)) + 1)])


FITS: dict[str, Fit] = {
    "merging alone, ours": merged,
    "merging alone, AgglomerativeClustering": its_ward,
    "KMeans from our merging": from_our_start,
    "the same, tol=0": to_the_end,
    "KMeans from k-means++": from_its_start,
}


def layers(assets: Path) -> Iterator[tuple[str, Points]]:
    """The largest weight of each model."""
    found = subjects(assets)
    for subject in map(found.__getitem__, SUBJECTS):
        graph = load_model(subject.model).graph
        tensors = (value.const_value for value in graph.initializers.values())
        arrays = (tensor.numpy() for tensor in tensors if tensor is not None)
        largest = max(arrays, key=lambda array: array.size)
        yield f"{subject.title}, {largest.size:,}", weighted(largest.reshape(len(largest), -1))


def weighted(weight: np.ndarray) -> Points:
    """The points of a weight over a scale per row, each row counted by its scale squared."""
    scale = np.sqrt(np.square(weight).mean(axis=1, keepdims=True))
    scale = np.maximum(scale, 1e-4 * scale.max()).astype(np.float32)
    return collect_points(lambda: [(weight / scale, np.square(scale))], weight.size)


def timed(fit: Fit, points: Points, count: int) -> tuple[float, float]:
    """The error, and seconds by the clock."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        centroids = fit(points, count)
    return error(points, centroids), time.perf_counter() - began


def kmeans_rows(assets: Path) -> Iterator[str]:
    """Ratio of errors and seconds, by layer and K."""
    names = " | ".join(f"{name}: error | s" for name in FITS)
    yield f"| weights | points | K | ours, s | {names} |"
    yield "|---" * (4 + 2 * len(FITS)) + "|"
    for title, points in layers(assets):
        for count in COUNTS:
            least, seconds = timed(own, points, count)
            found = (timed(fit, points, count) for fit in FITS.values())
            cells = " | ".join(f"{value / least:.4f} | {took:.2f}" for value, took in found)
            yield f"| {title} | {points.values.size:,} | {count} | {seconds:.2f} | {cells} |"


def shrinkage_rows() -> Iterator[str]:
    """Error of shrunk second moments against the true ones, and microseconds."""
    yield "| inputs | rows | unshrunk | ours | scikit-learn | ours, µs | scikit-learn, µs |"
    yield "|---" * 7 + "|"
    for size in (16, 64, 288):
        lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        truth = 0.9**lags
        for count in (size // 2, 2 * size, 8 * size):
            errors, spent = np.zeros(3), np.zeros(2)
            for seed in range(REPEATS):
                rng = np.random.default_rng(seed)
                rows = rng.multivariate_normal(np.zeros(size), truth, count, method="cholesky")
                moments = rows.T @ rows / count
                mean = np.trace(moments) / size
                began = time.perf_counter()
                damping = shrinkage(moments[None], count)[0]
                middle = time.perf_counter()
                other = oas(rows, assume_centered=True)[0]
                spent += middle - began, time.perf_counter() - middle
                share = damping / (damping + mean)
                shrunk = (1 - share) * moments + share * mean * np.eye(size)
                errors += [np.linalg.norm(each - truth) for each in (moments, shrunk, other)]
            errors /= REPEATS * np.linalg.norm(truth)
            cells = " | ".join(f"{each:.3f}" for each in errors)
            times = " | ".join(f"{1e6 * each / REPEATS:.0f}" for each in spent)
            yield f"| {size} | {count} | {cells} | {times} |"


def main() -> None:
    """Print both tables, and write them to a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    for rows in (kmeans_rows(options.assets), iter([""]), shrinkage_rows()):
        for line in rows:
            lines.append(line)
            print(line, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
