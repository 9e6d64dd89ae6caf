from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

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
