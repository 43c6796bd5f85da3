"""Canvas: a small procedural data set, and the models that go with it."""

__version__ = "0.1.0"
