"""The program that trains the models of this package: one file per stage, run by ``python -m vu_canvas.train``."""
