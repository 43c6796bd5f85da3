"""A whole small world for tests of the pipeline: model, data, methods, metric; a run takes a fraction of a second."""
