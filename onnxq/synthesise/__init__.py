"""Synthetic images: samples generated from the float model alone, where there are no data."""
