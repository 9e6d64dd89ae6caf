"""Samples made from the float network alone, where there are no data."""
