"""Rounding learned layer by layer: each block's output is reconstructed in turn."""
