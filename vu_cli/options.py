"""Options that several commands share, and how flags become overrides of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from vu_cli import session
from vu_core.config import FLAG_KEYS, Override, parse_set

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def _keep(field: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(session.of(context), field, True)

    return callback


def json_option() -> click.Option:
    """Return the option ``--json``, which every command has, those of plugins included."""
    return click.Option(
        ["--json", "as_json"],
        is_flag=True,
        expose_value=False,
        callback=_keep("json"),
        help="Print one JSON document on standard output and nothing else there.",
    )


def quiet_option(*, short: bool = True) -> click.Option:
    """Return the option ``--quiet``; ``-q`` for short, unless a command of a plugin uses that for something else."""
    return click.Option(
        ["--quiet", *(["-q"] if short else [])],
        is_flag=True,
        expose_value=False,
        callback=_keep("quiet"),
        help="Show results and errors only.",
    )


def shared(*, quiet: bool = False) -> Callable[[CommandT], CommandT]:
    """Give a command ``--json``, and ``--quiet`` if it takes long."""

    def add(command: CommandT) -> CommandT:
        _params(command).extend([json_option(), *([quiet_option()] if quiet else [])])
        return command

    return add


def _params(command: Any) -> list[click.Parameter]:
    """Return the parameters that click decorators have collected so far."""
    if isinstance(command, click.Command):
        return command.params
    if not hasattr(command, "__click_params__"):
        command.__click_params__ = []
    collected: list[click.Parameter] = command.__click_params__
    return collected


def _set_option(help_text: str) -> Callable[[CommandT], CommandT]:
    return click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=f"{help_text} Repeatable.")


set_option = _set_option("Any key of the configuration, such as unlearner.training.lr=1e-3.")
set_measuring_option = _set_option("A key of [measure] or [metric.NAME], such as measure.split=validation.")
seeds_option = click.option("--seeds", type=int, metavar="N", help="Seeds per item; short for --set measure.seeds=N.")

reference_option = click.option(
    "--reference", metavar="RUN", help="A finished run whose scores stand beside, such as that of a retrained model."
)


def measuring(settings: tuple[str, ...], **flags: Any) -> tuple[Override, ...]:
    """Return what the command line says about measuring; flags win over ``--set``.

    Args:
        settings: the texts after ``--set``.
        flags: values by key of the table ``[measure]``; ``None`` means that the flag was not given.

    Example:
        >>> measuring(("measure.seeds=3",), seeds=5, split=None)[1]
        Override(key='measure.seeds', value=5, origin='--seeds')
    """
    given = (Override(f"measure.{key}", value, f"--{key}") for key, value in flags.items() if value is not None)
    return (*overrides({}, settings), *given)


def overrides(flags: Mapping[str, Any], settings: tuple[str, ...]) -> tuple[Override, ...]:
    """Return what the command line says about the configuration; flags win over ``--set``.

    Args:
        flags: values by the name of the flag without its dashes; ``None`` and ``()`` mean that it was not given.
        settings: the texts after ``--set``.

    Raises:
        ConfigError: a text after ``--set`` is no ``key=value``.

    Example:
        >>> overrides({"seed": 7, "model": None}, ("measure.seeds=3",))[1]
        Override(key='run.seed', value=7, origin='--seed')
    """
    given = [parse_set(text) for text in settings]
    for flag, key in FLAG_KEYS.items():
        value = flags.get(flag.removeprefix("--"))
        if value is not None and value != ():
            given.append(Override(key, value, flag))
    return tuple(given)
