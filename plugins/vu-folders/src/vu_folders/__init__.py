"""Pictures in folders as data for `vu`."""
