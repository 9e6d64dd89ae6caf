from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before numpy is imported: workers side by side leave each other the cores.
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

# A busy machine is no failure.
settings.register_profile("onnxq", deadline=None)
settings.load_profile("onnxq")

ASSETS = Path(__file__).parents[2] / "shared" / "assets"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The optional folder of real models and images."""
    if not ASSETS.is_dir():
        pytest.skip(f"needs the optional folder of assets, not found at {ASSETS}")
    return ASSETS


@pytest.fixture(scope="session")
def sample_models() -> Path:
    return Path(__file__).parents[1] / "sample_models"
