"""Samples: the user's data, read as a stream of feeds for the model."""
