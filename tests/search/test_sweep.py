"""The sweep gives what the whole student gives, with one layer quantized and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import BODIES, Quantized, image_graph, images, quantize, run, small_graph

from onnxq.data.samples import Samples, open_samples
from onnxq.errors import DataError, ModelError
from onnxq.learn.logits import find_logits
from onnxq.load.inputs import input_specs
from onnxq.numerics.distributions import kl_divergence, log_probabilities
from onnxq.plan import Plan
from onnxq.recipe import Recipe
from onnxq.rewrite.quantizers import student_feeds
from onnxq.search import sweep as module
from onnxq.search.candidates import Candidates
from onnxq.search.suffix import Suffix
from onnxq.search.sweep import by_weight, sweep
from onnxq.search.table import FLOAT, Setting, SweepTable

FLOAT_ACTIVATIONS = Recipe(activation_bits=None)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return saved(tmp_path, images(40), small_graph("relu"))


def saved(folder: Path, x: np.ndarray, model: ir.Model) -> Samples:
    np.savez(folder / "x.npz", x=x)
    return open_samples(folder / "x.npz", input_specs(model), None)


def swept(found: Quantized, samples: Samples, **options: object) -> SweepTable:
    return sweep(found.teacher, found.student, found.quantizers, samples, **options)  # type: ignore[arg-type]
