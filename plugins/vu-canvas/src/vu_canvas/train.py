"""The command line that trains, exports and checks the models of this package.

Run ``python -m vu_canvas.train --help``. The stages in order: vae, judge, diffusion, export, check.
"""

from __future__ import annotations

import time
from pathlib import Path

import click


def say(line: str) -> None:
    """Write one progress line with the time of day."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}")


def default_folder() -> Path:
    """Return the folder for checkpoints that is used when none is given."""
    return Path(click.get_app_dir("vu-canvas")) / "checkpoints"


@click.group()
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_folder,
    show_default="the user's application folder",
    help="Where checkpoints are written and resumed from.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Processor threads.")
@click.pass_context
def main(context: click.Context, checkpoints: Path, threads: int) -> None:
    """Train the models that vu-canvas ships. Every stage continues from its checkpoint."""
    import torch

    torch.set_num_threads(threads)
    context.obj = checkpoints


@main.command()
@click.pass_obj
def vae(folder: Path) -> None:
    """Train the autoencoder (about 8 minutes on 2 cores)."""
    from vu_canvas.training import vae as stage

    stage.train(folder, say)


if __name__ == "__main__":
    main()
