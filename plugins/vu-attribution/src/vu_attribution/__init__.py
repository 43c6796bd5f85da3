"""Scores that tell how much each parameter matters for what is to be forgotten."""
