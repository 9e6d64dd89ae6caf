"""Verification: outputs, kernels, size and latency of the exported model against the original's."""
