"""Scripts that make what the repository ships; run from its root with ``python -m tools.NAME``."""
