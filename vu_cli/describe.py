"""``vu describe NAME``: what a plugin does, where it comes from, and everything that can be set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.completion import names_of
from vu_cli.options import shared
from vu_cli.silence import silenced
from vu_core import ConfigError, PluginError, did_you_mean
from vu_core.hookspecs import KINDS
from vu_core.registry import WORDS

if TYPE_CHECKING:
    from vu_core.describe import Description
    from vu_core.plugins import Plugins

UNKNOWN = "VU-P001"
"""Code of the error that nobody brings a name."""
EPILOG = """\b
Examples:
  vu describe fade-sparse
  vu describe fade-sparse --model canvas-diffusion
  vu describe lora --kind parameters
"""


@click.command(cls=Command, short_help="Explain a plugin and its settings.", epilog=EPILOG)
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
    plugins = sessions.of(context).plugins
    try:
        with silenced():
            return look_up(name, plugins, kind=kind, model=model)
    except PluginError as error:
        published = {owner for names in plugins.registry.directory.values() for owner in names.values()}
        if error.code == UNKNOWN and name in {*published, *(each.name for each in plugins.distributions)}:
            raise _is_distribution(name, plugins) from error
        raise


def _is_distribution(name: str, plugins: Plugins) -> PluginError:
    """Return the error for who asks for a distribution: only the names that it brings can be described."""
    brought = [entry for entry in plugins.registry.entries() if entry.distribution == name and entry.kind != "recipe"]
    if brought:
        names = ", ".join(f"{entry.name} ({WORDS.get(entry.kind, entry.kind)})" for entry in brought)
        remedy = f"Describe one of the names that it brings: {names}."
    elif all(each.name != name for each in plugins.distributions):
        remedy = f"It is not installed. Try: pip install {name}"
    else:
        causes = [f"{each.state}: {each.cause}" for each in plugins.distributions if each.name == name and each.cause]
        remedy = f"It brings no names. {' '.join(causes)}".strip()
    return PluginError(UNKNOWN, f"'{name}' is a distribution, not a plugin.", remedy)
