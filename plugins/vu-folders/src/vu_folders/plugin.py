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
def vu_register_commands(register: Register) -> None:
    """Name the commands."""
    register(
        "arrange-imagenet100",
        "vu_folders.imagenet100:arrange",
        summary="Arrange a raw ImageNet-100 as folders train and test.",
    )


@hookimpl
def vu_check_plan(plan: Plan) -> None:
    """Object to a method that looks at images when the data have none, and to a model that lacks an overwrite."""
    from vu_folders.imagefolder import check_overwrites
    from vu_folders.prompts import check_images

    check_images(plan)
    check_overwrites(plan)
