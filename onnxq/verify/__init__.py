"""What the exported model is worth: its outputs, kernels and latency against the original's."""
