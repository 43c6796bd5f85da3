"""Metrics for `vu`: what was forgotten, what was kept, and how large the edit is."""
