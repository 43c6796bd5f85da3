"""The measured runs behind docs/reference/results.md, one kind of group per module; see results.py."""
