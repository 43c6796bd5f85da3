"""``vu generate``: one prompt, before and after, side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.options import shared
from vu_cli.progress import Heard
from vu_cli.render import watcher
from vu_cli.session import Page
from vu_cli.silence import silenced
from vu_core import RecordError

if TYPE_CHECKING:
    import numpy as np

_GAP = 8
_LABEL = 14

EPILOG = """\b
Example:
  vu generate runs/0123456789ab "A star image in neon style." --seed 7 --out star.png
"""


@click.command(cls=Command, short_help="Generate an image before and after a run.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, show_default=True, help="Seed of the starting noise."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="The PNG; a free name here when absent.")
@shared(quiet=True)
@click.pass_context
def generate(context: click.Context, run: Path, prompt: str, seed: int, out: Path | None) -> Page:
    """Generate PROMPT with the untouched model (left) and with the edit of RUN (right), from the same noise."""
    from vu_core import pipeline

    session = sessions.of(context)
    target = _checked(out) if out is not None else _free_name(run, seed)
    with silenced():
        with watcher(session) as watch:
            heard = Heard(watch)
            before, after = pipeline.generate(run, prompt, seed, plugins=session.plugins, on_event=heard)
        image = side_by_side(before, after)
        _write(target, image, prompt, seed)
    facts = {"file": str(target), "prompt": prompt, "seed": seed, "width": image.width, "height": image.height}
    lines = [f"Before (left) and after (right) written to {target}", *(f"warning: {each}" for each in heard.warnings)]
    return Page("\n".join(lines), {**facts, "warnings": list(heard.warnings)})


def side_by_side(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> Any:
    """Return both images in one, pixel for pixel, under the words before and after.

    Args:
        before: uint8 ``(H, W, 3)``.
        after: uint8 of the same size.
    """
    from PIL import Image, ImageDraw

    height, width = before.shape[:2]
    canvas = Image.new("RGB", (2 * width + _GAP, height + _LABEL), "white")
    draw = ImageDraw.Draw(canvas)
    for left, word, image in ((0, "before", before), (width + _GAP, "after", after)):
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


def _write(target: Path, image: Any, prompt: str, seed: int) -> None:
    from PIL.PngImagePlugin import PngInfo

    from vu_core.atomic import write_bytes

    facts = PngInfo()
    facts.add_itxt("prompt", prompt)
    facts.add_text("seed", str(seed))
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
