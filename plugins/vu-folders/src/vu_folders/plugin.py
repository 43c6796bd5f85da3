"""Entry point of the distribution: names only, nothing heavy is imported."""

from __future__ import annotations

from vu_core import Register, hookimpl


@hookimpl
def vu_register_datasets(register: Register) -> None:
    """Name the datasets."""
    register(
        "imagefolder",
        "vu_folders.imagefolder:ImageFolder",
        summary="a folder of images: class folders, or metadata.jsonl with captions",
    )
    register(
        "metafile",
        "vu_folders.metafile:Metafile",
        summary="a JSON file that lists forget and retain images with captions and overwrite captions",
    )
