"""A method and a metric for `vu`."""
