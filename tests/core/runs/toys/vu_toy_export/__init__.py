"""Toy exporters: one that is right, and one for every way to be wrong."""
