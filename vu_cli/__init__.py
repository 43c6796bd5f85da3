"""The command line of `vu`: one command per file, `render` shows every noun."""
