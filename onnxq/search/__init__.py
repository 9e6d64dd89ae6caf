"""The search for a setting of each layer: sweep, allocation, trials of whole models."""
