"""``vu describe NAME``: what a plugin does, where it comes from, and everything that can be set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vu_cli import session as sessions
from vu_cli.completion import names_of
from vu_cli.options import shared
from vu_cli.silence import silenced
from vu_core import ConfigError, did_you_mean
from vu_core.hookspecs import KINDS

if TYPE_CHECKING:
    from vu_core.describe import Description

EPILOG = """\b
Examples:
  vu describe fade-sparse
  vu describe fade-sparse --model canvas-diffusion
  vu describe lora --kind parameters
"""


@click.command(short_help="Explain a plugin and its settings.", epilog=EPILOG)
@click.argument("name", shell_complete=names_of())
@click.option("--kind", metavar="KIND", help="The kind, where a name has several, such as parameters.")
@click.option(
    "--model", metavar="NAME", shell_complete=names_of("model"), help="Show a method's values for this model."
)
@shared()
@click.pass_context
def describe(context: click.Context, name: str, kind: str | None, model: str | None) -> tuple[Description, ...]:
    """Explain the plugin NAME: what it does, its paper, every setting with type, default, origin, range and help.

    The last part is a block for a configuration file with all values.
    """
    from vu_core.describe import describe as look_up

    if kind is not None and kind not in KINDS:
        problem = f"There is no kind '{kind}'.{did_you_mean(kind, KINDS)}"
        raise ConfigError("VU-C125", problem, f"Kinds are: {', '.join(KINDS)}.", where="--kind")
    with silenced():
        return look_up(name, sessions.of(context).plugins, kind=kind, model=model)
