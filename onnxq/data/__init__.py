"""Samples: what the user gives, read as a stream of feeds for the model."""
