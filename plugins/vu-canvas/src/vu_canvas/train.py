"""The command line that trains, exports and checks the models of this package.

Run ``python -m vu_canvas.train --help``. The stages in order: vae, judge, diffusion, vit, export, check.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vu_canvas.training.loop import Schedule


@dataclass(frozen=True)
class Workshop:
    """Where checkpoints live and which device computes."""

    folder: Path
    device: str


def say(line: str) -> None:
    """Write one progress line with the time of day."""
    click.echo(f"{time.strftime('%H:%M:%S')} {line}")


def default_folder() -> Path:
    """Return the folder for checkpoints that is used when none is given."""
    return Path(click.get_app_dir("vu-canvas")) / "checkpoints"


def plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one line and exit status 2 on what the caller can put right, without a traceback."""

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        from vu_canvas.training.loop import TrainingError

        try:
            command(*args, **options)
        except TrainingError as error:
            click.echo(f"Error: {error}", err=True)
            raise SystemExit(2) from error

    return run


def known_device(context: click.Context, option: click.Parameter, device: str) -> str:
    """Return the device. Raises: click.BadParameter when it is unknown or not there."""
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise click.BadParameter(f"{device!r} is none of cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise click.BadParameter(f"this machine, or this build of torch, has no device {device!r}")
    return device


@click.group()
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_folder,
    show_default="the user's application folder",
    help="Where checkpoints are written and resumed from.",
)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Processor threads.")
@click.option("--device", default="cpu", show_default=True, callback=known_device, help="cpu, or cuda for one GPU.")
@click.pass_context
def main(context: click.Context, checkpoints: Path, threads: int, device: str) -> None:
    """Train the models that vu-canvas ships. Every stage continues from its checkpoint."""
    import torch

    torch.set_num_threads(threads)
    context.obj = Workshop(checkpoints, device)


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
@plainly
def vae(shop: Workshop, steps: int | None, seed: int) -> None:
    """Train the autoencoder."""
    from vu_canvas.training import vae as stage

    stage.train(shop.folder, say, planned(stage.SCHEDULE, steps, seed), shop.device)


@main.command()
@schedule_options
@click.pass_obj
@plainly
def judge(shop: Workshop, steps: int | None, seed: int) -> None:
    """Train the judge, on renders only."""
    from vu_canvas.training import judge as stage

    stage.train(shop.folder, say, planned(stage.SCHEDULE, steps, seed), shop.device)


@main.command()
@schedule_options
@click.pass_obj
@plainly
def diffusion(shop: Workshop, steps: int | None, seed: int) -> None:
    """Train text encoder and UNet; the autoencoder must be trained."""
    from vu_canvas.training import diffusion as stage

    stage.train(shop.folder, say, planned(stage.SCHEDULE, steps, seed), shop.device)


@main.command()
@schedule_options
@click.pass_obj
@plainly
def vit(shop: Workshop, steps: int | None, seed: int) -> None:
    """Train the classifier of the 100 identities, on renders only."""
    from vu_canvas.training import vit as stage

    stage.train(shop.folder, say, planned(stage.SCHEDULE, steps, seed), shop.device)


def target_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the folder of the weights."""
    kind = click.Path(file_okay=False, path_type=Path)
    return click.option("--target", type=kind, help="Folder of the weights; default: the package's.")(command)


@main.command()
@target_option
@click.argument("what", type=click.Choice(["all", "judge", "diffusion", "vit"]), default="all")
@click.pass_obj
@plainly
def export(shop: Workshop, target: Path | None, what: str) -> None:
    """Write the trained models as half-precision safetensors that plain diffusers loads."""
    from vu_canvas.training import export as stage

    target = stage.WEIGHTS if target is None else target
    if what in ("all", "judge"):
        stage.export_judge(shop.folder, target, say)
    if what in ("all", "diffusion"):
        stage.export_pipeline(shop.folder, target, say)
    if what in ("all", "vit"):
        stage.export_vit(shop.folder, target, say)


@main.command()
@target_option
@click.option("--images", type=click.IntRange(min=100), default=1000, show_default=True, help="A multiple of 100.")
@click.option("--write", is_flag=True, help="Write what was measured into README.md beside the weights.")
@click.pass_obj
@plainly
def check(shop: Workshop, target: Path | None, images: int, write: bool) -> None:
    """Measure the models; exit status 1 when one is below its target."""
    from vu_canvas.training import check as stage
    from vu_canvas.training.export import WEIGHTS, write_readme

    if images % 100:
        raise click.BadParameter("must be a multiple of 100, one for every pair", param_hint="--images")
    target = WEIGHTS if target is None else target
    pipeline, judge = stage.load_shipped(target), stage.load_judge_of(target)
    results = stage.measure(pipeline.to(shop.device), judge.to(shop.device), images, say)
    tables = stage.table(results)
    click.echo(tables)
    if write:
        write_readme(shop.folder, target, images, stage.conditions(images), tables)
    misses = [line for result in results for line in result.misses()]
    if misses:
        raise click.ClickException("below target:\n" + "\n".join(misses))


@main.command()
@target_option
@click.option("--per-identity", type=click.IntRange(min=1), default=100, show_default=True, help="Unseen drawings.")
@click.option("--write", is_flag=True, help="Write what was measured into vit.md beside the weights.")
@click.pass_obj
@plainly
def check_vit(shop: Workshop, target: Path | None, per_identity: int, write: bool) -> None:
    """Measure the classifier of the 100 identities; exit status 1 when it is below its target."""
    from vu_canvas.training import check_vit as stage
    from vu_canvas.training.export import WEIGHTS

    target = WEIGHTS if target is None else target
    result = stage.measure(target, per_identity, shop.device)
    click.echo(result.text())
    if write:
        stage.write_page(shop.folder, target, result)
    if result.misses():
        raise click.ClickException("below target:\n" + "\n".join(result.misses()))


if __name__ == "__main__":
    main()
