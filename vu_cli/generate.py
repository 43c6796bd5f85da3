"""``vu generate``: one prompt, before and after, side by side, or any of the models that an edit gives."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vu_cli import session as sessions
from vu_cli.command import Command, FiniteNumber
from vu_cli.options import shared
from vu_cli.session import Page
from vu_core import RecordError

if TYPE_CHECKING:
    import numpy as np

    from vu_core.edit import Edit
    from vu_core.workbench import Workbench

_GAP = 8
_LABEL = 14
_PAIR = {"before": "original", "after": "unlearned"}
"""What is shown when nothing is said, under these words."""

EPILOG = """\b
Examples:
  vu generate runs/0123456789ab "A star image in neon style." --seed 7 --out star.png
  vu generate runs/0123456789ab "A star image in neon style." --as unlearned --scale 0.8
"""


@click.command(cls=Command, short_help="Generate an image before and after a run.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "--as",
    "words",
    multiple=True,
    type=click.Choice(("original", "unlearned", "learned")),
    help="Which model: untouched, with the edit, or with its opposite. Repeatable; one image each.",
)
@click.option(
    "--scale",
    type=FiniteNumber(),
    metavar="S",
    help="Strength of the edit: 0 is none, 1 what was trained, -1 its opposite.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Seed of the starting noise."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="The PNG; a free name here when absent.")
@shared(quiet=True)
@click.pass_context
def generate(
    context: click.Context,
    run: Path,
    prompt: str,
    words: tuple[str, ...],
    scale: float | None,
    seed: int,
    out: Path | None,
) -> Page:
    """Generate PROMPT with the untouched model (left) and with the edit of RUN (right), from the same noise.

    --as chooses other models; of a single one, the file holds the image and nothing else. "learned" is the untouched
    model plus what the edit takes away.
    """
    from vu_core.event import stage
    from vu_core.workbench import opened

    if len(set(words)) < len(words):
        raise click.BadParameter("each model can be shown once.", context, param_hint="'--as'")
    session = sessions.of(context)
    target = _checked(out) if out is not None else _free_name(run, seed)
    columns = {word: word for word in words} or _PAIR
    strength = 1.0 if scale is None else scale
    with session.watching() as heard, opened(run, session, heard) as bench:
        with stage(bench.emit, "generate"):
            images = {
                word: bench.generate(prompt, seed, _edit(bench, model, strength)) for word, model in columns.items()
            }
        image = side_by_side(images)
        told = {"as": ",".join(words)} if words else {}
        told |= {} if scale is None else {"scale": repr(scale)}
        _write(target, image, {"prompt": prompt, "seed": str(seed), **told})
    facts = {"file": str(target), "prompt": prompt, "seed": seed, "width": image.width, "height": image.height}
    facts |= {"as": list(columns.values()), "scale": strength, "warnings": list(heard.warnings)}
    lines = [_sentence(words, target), *(f"warning: {each}" for each in heard.warnings)]
    return Page("\n".join(lines), facts)


def _edit(bench: Workbench, model: str, scale: float) -> Edit | None:
    """Return the edit under which the model of a run is what the word says."""
    from vu_core.adapters import scaled

    factor = {"original": 0.0, "unlearned": scale, "learned": -scale}[model]
    return scaled(bench.edit, factor, bench.model.network) if factor else None


def _sentence(words: Sequence[str], target: Path) -> str:
    if not words:
        return f"Before (left) and after (right) written to {target}"
    return f"{', '.join(words).capitalize()}{' (from left to right)' if len(words) > 1 else ''} written to {target}"


def side_by_side(images: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """Return several images in one, pixel for pixel, each under its word; a single image as it is.

    Args:
        images: uint8 ``(H, W, 3)``, all of one size, by word.
    """
    from PIL import Image, ImageDraw

    first, *others = images.values()
    if not others:
        return Image.fromarray(first)
    height, width = first.shape[:2]
    canvas = Image.new("RGB", (len(images) * (width + _GAP) - _GAP, height + _LABEL), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (word, image) in enumerate(images.items()):
        left = place * (width + _GAP)
        draw.text((left + width // 2, _LABEL // 2), word, fill="black", anchor="mm")
        canvas.paste(Image.fromarray(image), (left, _LABEL))
    return canvas


def _checked(out: Path) -> Path:
    """Refuse a target before anything heavy starts: a folder, or a file in a folder that is not there."""
    problem = "is a folder" if out.is_dir() else "" if out.parent.is_dir() else "lies in a folder that does not exist"
    if problem:
        raise RecordError("VU-R120", f"{str(out)!r} {problem}.", "Name a file, such as star.png.", where="--out")
    return out if out.suffix else out.with_suffix(".png")


def _free_name(run: Path, seed: int) -> Path:
    stem = f"{run.resolve().name}-seed{seed}"
    names = (Path(f"{stem}.png" if number == 1 else f"{stem}.{number}.png") for number in range(1, 1_000_000))
    return next(path for path in names if not path.exists())


def _write(target: Path, image: Any, told: Mapping[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    from vu_core.atomic import write_bytes

    facts = PngInfo()
    for key, text in told.items():
        if key == "prompt":  # of any script
            facts.add_itxt(key, text)
        else:
            facts.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=facts)
    try:
        write_bytes(target, buffer.getvalue())
    except OSError as error:
        raise RecordError(
            "VU-R120",
            f"{str(target)!r} cannot be written: {error.strerror or error}.",
            "Name another file with --out.",
            where="--out",
        ) from error
