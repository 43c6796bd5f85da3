"""The command line that trains, exports and checks the models of this package.

Run ``python -m vu_canvas.train --help``. The stages in order: vae, judge, diffusion, export, check.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vu_canvas.training.loop import Schedule


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


def planned(schedule: Schedule, steps: int | None, seed: int) -> Schedule:
    """Return the schedule of a stage with the steps and the seed of the command line."""
    return replace(schedule, steps=schedule.steps if steps is None else steps, seed=seed)


def schedule_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all training stages have."""
    steps = click.option("--steps", type=click.IntRange(min=1), help="Training steps; default: as shipped.")
    seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
    return steps(seed(command))


@main.command()
@schedule_options
@click.pass_obj
def vae(folder: Path, steps: int | None, seed: int) -> None:
    """Train the autoencoder."""
    from vu_canvas.training import vae as stage

    stage.train(folder, say, planned(stage.SCHEDULE, steps, seed))


@main.command()
@schedule_options
@click.pass_obj
def judge(folder: Path, steps: int | None, seed: int) -> None:
    """Train the judge, on renders only."""
    from vu_canvas.training import judge as stage

    stage.train(folder, say, planned(stage.SCHEDULE, steps, seed))


@main.command()
@schedule_options
@click.pass_obj
def diffusion(folder: Path, steps: int | None, seed: int) -> None:
    """Train text encoder and UNet; the autoencoder must be trained."""
    from vu_canvas.training import diffusion as stage

    stage.train(folder, say, planned(stage.SCHEDULE, steps, seed))


@main.command()
@click.option(
    "--target", type=click.Path(file_okay=False, path_type=Path), help="Folder of the weights; default: the package's."
)
@click.argument("what", type=click.Choice(["all", "judge", "diffusion"]), default="all")
@click.pass_obj
def export(folder: Path, target: Path | None, what: str) -> None:
    """Write the trained models as half-precision safetensors that plain diffusers loads."""
    from vu_canvas.training import export as stage

    target = stage.WEIGHTS if target is None else target
    if what in ("all", "judge"):
        stage.export_judge(folder, target, say)
    if what in ("all", "diffusion"):
        stage.export_pipeline(folder, target, say)


@main.command()
@click.option("--images", type=click.IntRange(min=100), default=1000, show_default=True, help="A multiple of 100.")
@click.pass_obj
def check(folder: Path, images: int) -> None:
    """Measure the shipped models; exit status 1 when one is below its target."""
    from vu_canvas.judge import load_judge
    from vu_canvas.training import check as stage
    from vu_canvas.training.export import WEIGHTS, write_readme

    if images % 100:
        raise click.BadParameter("must be a multiple of 100, one for every pair", param_hint="--images")
    results = stage.measure(stage.load_shipped(WEIGHTS), load_judge(), images, say)
    tables = stage.table(results)
    click.echo(tables)
    write_readme(folder, WEIGHTS, stage.conditions(images), tables)
    misses = [line for result in results for line in result.misses()]
    if misses:
        raise click.ClickException("below target:\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
