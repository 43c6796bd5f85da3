"""Toy plugins of every kind that a configuration can name."""
