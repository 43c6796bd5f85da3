"""Images in folders as data for `vu`."""
