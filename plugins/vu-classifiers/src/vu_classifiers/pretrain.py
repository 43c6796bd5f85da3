"""The command line that trains a face transformer.

Run ``python -m vu_classifiers.pretrain --data imagefolder=FOLDER --out faces``, or ``--data canvas`` where vu-canvas is
installed. An interrupted training continues when the same command is given again.
"""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import click

from vu_classifiers.architecture import HEADS, Architecture
from vu_core import ModelError, Run, VuError, cache_root, did_you_mean

PUBLISHED = Architecture()


@click.command()
@click.option(
    "--data", "named", required=True, metavar="NAME[=REF]", help="Data with classes, such as imagefolder=DIR."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the result.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the data; repeat for more.")
@click.option("--head", type=click.Choice(list(HEADS)), default=PUBLISHED.head, show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=PUBLISHED.size, show_default=True, help="Of the images.")
@click.option("--overlap", is_flag=True, help="Patches of 12 pixels that overlap, every 8 pixels, instead of 8.")
@click.option("--depth", type=click.IntRange(min=1), default=PUBLISHED.depth, show_default=True, help="Blocks.")
@click.option("--dim", type=click.IntRange(min=1), default=PUBLISHED.width, show_default=True, help="Width of tokens.")
@click.option("--epochs", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option("--warmup", type=click.IntRange(min=0), help="Epochs; default: 10, at most a tenth of all.")
@click.option("--batch", type=click.IntRange(min=1), default=480, show_default=True, help="Images per step.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=3e-4, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Processor threads.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda.")
def main(**options: Any) -> None:
    """Train the vision transformer for faces from scratch, on all training images of some data.

    The defaults are the published schedule: AdamW, 1200 epochs in batches of 480, ten of them with a rising learning
    rate. Feed-forward networks are four times as wide as tokens, heads 64 wide.
    """
    try:
        _train(**options)
    except VuError as error:
        click.echo(f"Error {error.code}: {error}", err=True)
        raise SystemExit(2) from error


def _train(named: str, out: Path, settings: tuple[str, ...], **options: Any) -> None:
    import torch

    from vu_classifiers.pretraining import Pretraining, Schedule, in_memory, model_of, network_for

    torch.set_num_threads(options["threads"])
    _check_device(options["device"])
    epochs, seed = options["epochs"], options["seed"]
    warmup = min(10, epochs // 10) if options["warmup"] is None else options["warmup"]
    if warmup >= epochs:
        raise ModelError("VU-M118", f"{warmup} of {epochs} epochs are warm-up.", "Train for longer.", where="--warmup")
    schedule = Schedule(epochs=epochs, warmup=warmup, batch=options["batch"], lr=options["lr"], seed=seed)
    data = dataset(named, settings)
    concepts = dict(data.classes())
    architecture = architecture_of(len(concepts), options)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(seed=seed, device="cpu", precision="fp32", folder=out, cache=cache_root())
    # Which class is "forgotten" does not matter: both sides are trained on.
    first, second, *_ = concepts.values()
    selection = data.parse([first], [second] if getattr(data, "has_overwrites", True) else [])
    built = data.build(selection, resolution=architecture.size, run=run)
    reader = model_of(network_for(architecture, seed), architecture, tuple(concepts))
    faces = in_memory(reader, (built.forget, built.retain), data.manifest(selection).digest, run)
    training = Pretraining(architecture, schedule, faces, out, device=options["device"], say=click.echo)
    training.run()
    click.echo(f"Written: {out}. Load it with --model face-transformer={out}")


def architecture_of(classes: int, options: Any) -> Architecture:
    """Return the architecture that the options describe. Raises: ModelError (``VU-M118``)."""
    width = options["dim"]
    patches = {"patch": 12, "pad": 4} if options["overlap"] else {}
    try:
        return Architecture(
            classes=classes,
            size=options["size"],
            width=width,
            depth=options["depth"],
            heads=max(1, width // PUBLISHED.head_width),
            head_width=min(PUBLISHED.head_width, width),
            hidden=4 * width,
            head=options["head"],
            **patches,
        )
    except ValueError as error:
        raise ModelError(
            "VU-M118", f"There is no such network: {error}.", "Choose larger images.", where="--size"
        ) from error


def dataset(named: str, settings: tuple[str, ...]) -> Any:
    """Return the data plugin ``NAME`` or ``NAME=REF`` of an installed distribution, with these settings.

    Raises:
        ModelError: ``VU-M118`` for an unknown name, a setting that the data do not have, or data without classes.
    """
    name, _, ref = named.partition("=")
    targets = _targets()
    if name not in targets:
        known = ", ".join(sorted(targets)) or "none"
        raise _no_data(f"No data are called {name!r}.{did_you_mean(name, targets)}", f"Installed are: {known}.")
    module, _, attribute = targets[name].partition(":")
    plugin = getattr(import_module(module), attribute)
    kinds = get_type_hints(plugin.Config)
    try:
        values = {key: _typed(value, kinds.get(key, object)) for key, value in map(_setting, settings)}
        config = plugin.Config(**values)
    except (TypeError, ValueError) as error:
        raise _no_data(f"The data {name!r} refuse a setting: {error}.", f"`vu describe {name}` lists them.") from error
    data = plugin(ref, config)
    if not hasattr(data, "classes"):
        raise _no_data(f"The data {name!r} have no list of classes.", "Use data for classifiers.")
    if len(data.classes()) < 2:
        raise _no_data(f"The data {named!r} have fewer than two classes.", "Add the images of another one.")
    return data


def _targets() -> dict[str, str]:
    """Return name and target of the data that installed distributions register."""
    targets: dict[str, str] = {}

    def register(name: str, target: str, *, aliases: tuple[str, ...] = (), **_: Any) -> None:
        targets.update(dict.fromkeys((name, *aliases), target))

    for point in entry_points(group="vu.plugins"):
        hook = getattr(point.load(), "vu_register_datasets", None)
        if hook is not None:
            hook(register=register)
    return targets


def _setting(text: str) -> tuple[str, Any]:
    """Return key and value of ``KEY=VALUE``; a value that is no JSON is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise _no_data(f"{text!r} is no KEY=VALUE.", "Write --set retain_per_pair=20.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _typed(value: Any, wanted: Any) -> Any:
    """Return a JSON value as the type of a setting: lists become tuples. Raises: TypeError when it is another."""
    for kind in get_args(wanted) if isinstance(wanted, UnionType) else (wanted,):
        if get_origin(kind) is tuple and isinstance(value, list):
            return tuple(_typed(part, get_args(kind)[0]) for part in value)
        plain = int | float if kind is float else get_origin(kind) or kind
        if isinstance(value, plain) and (kind is object or isinstance(value, bool) == (kind is bool)):
            return value
    raise TypeError(f"{value!r} is none of the kind {getattr(wanted, '__name__', wanted)}")


def _check_device(device: str) -> None:
    """Refuse a device that is not there. Raises: ModelError (``VU-M078``)."""
    import torch

    kind, _, number = device.partition(":")
    known = kind in ("cpu", "cuda") and (not number or number.isdigit())
    if not known or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise ModelError("VU-M078", f"This machine has no device {device!r}.", "Use --device cpu.", where="--device")


def _no_data(problem: str, remedy: str) -> ModelError:
    return ModelError("VU-M118", problem, remedy, where="--data")


if __name__ == "__main__":
    main()
