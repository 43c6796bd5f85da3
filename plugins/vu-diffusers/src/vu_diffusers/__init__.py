"""Stable Diffusion models for `vu`: read from a folder or the hub, edited, exported."""
