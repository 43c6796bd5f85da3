"""Entry point of the distribution: names only, nothing heavy is imported."""

from __future__ import annotations

from vu_core import Plan, Register, hookimpl


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
    register(
        "prompts",
        "vu_folders.prompts:Prompts",
        summary="words to forget and to keep, without images, for methods that work on words alone",
    )


@hookimpl
def vu_check_plan(plan: Plan) -> None:
    """Object to a method that looks at images when the data have none."""
    from vu_folders.prompts import check_images

    check_images(plan)
