"""``vu export``: a run as files that other tools read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vu_cli import document
from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.completion import names_of
from vu_cli.options import shared
from vu_cli.session import Page
from vu_core.units import bytes_text

if TYPE_CHECKING:
    from vu_core.exporting import Export

EPILOG = """\b
Example:
  vu export runs/0123456789ab --to diffusers --out neon-lora
"""


@click.command(cls=Command, short_help="Write an edit for other tools, and prove it.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORMAT", shell_complete=names_of("exporter"), help="Name of an exporter.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of the export; it must not exist yet, or be empty.",
)
@click.option(
    "--scale", type=float, metavar="S", default=1.0, show_default=True, help="Strength; 1 is the trained one."
)
@click.option(
    "--densify", type=float, metavar="STRENGTH", help="Hide where a sparse edit is by noise of this strength."
)
@click.option("--refit-rank", type=int, metavar="R", help="Bring the change to low rank by truncated SVD.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the format, see vu describe. Repeatable.",
)
@shared(quiet=True)
@click.pass_context
def export(
    context: click.Context,
    run: Path,
    to: str,
    out: Path,
    scale: float,
    densify: float | None,
    refit_rank: int | None,
    settings: tuple[str, ...],
) -> Page:
    """Write the edit of RUN in another format, with a model card.

    What was written is read again with the loader that the format is made for, and compared with the edit: a denoiser's
    outputs and an image. When they differ, nothing is kept.
    """
    from vu_core import exporting

    session = sessions.of(context)
    told = exporting.told(settings)
    with session.watching() as heard:
        made = exporting.export(
            run, to, out, session, heard, settings=told, scale=scale, densify=densify, refit_rank=refit_rank
        )
    return _page(made, tuple(heard.warnings))


def _page(made: Export, warnings: tuple[str, ...]) -> Page:
    """Return what was written, what the comparisons say, and how it is loaded."""
    from vu_core.export_card import check_texts

    checks = [(check.what, *check_texts(check)) for check in made.checks]
    blocks = (
        [f"{made.title}, as {made.format}"],
        [f"  Written to {made.folder}/", *_columns((name, bytes_text(size)) for name, size in made.files.items())],
        [f"  {sentence}" for sentence in made.changes],
        [
            "  Read again and compared with the edit",
            *_columns((what, f"error {error}", f"limit {limit}") for what, error, limit in checks),
        ],
        [f"  How to load it, in {made.folder}/", *_set_in(made.usage)],
        [f"  warning: {text}" for text in warnings],
    )
    text = "\n\n".join("\n".join(block) for block in blocks if block)
    return Page(text, {**document.content(made), "warnings": list(warnings)}, wrapped=False)


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return [f"    {line.rstrip()}" for line in lines]


def _set_in(code: str) -> list[str]:
    return [f"    {line}".rstrip() for line in code.splitlines()]
