"""The stages of a run, in the order read, structure, plan, load, unlearn, apply, measure, record."""
