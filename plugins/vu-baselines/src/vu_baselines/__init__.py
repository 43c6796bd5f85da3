"""Baselines of machine unlearning for classifiers and diffusion models."""
