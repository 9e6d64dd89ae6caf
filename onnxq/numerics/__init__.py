"""Arithmetic on arrays, without graphs or sessions."""
