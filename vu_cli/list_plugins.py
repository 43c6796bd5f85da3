"""``vu list-plugins``: who is installed, who brings what, and in which state it is."""

from __future__ import annotations

import attrs
import click

from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.group import COMMANDS
from vu_cli.options import shared
from vu_cli.silence import silenced
from vu_core import ConfigError, PluginError, VuError, did_you_mean
from vu_core.hookspecs import KINDS
from vu_core.plugins import Distribution, Plugins
from vu_core.registry import Entry

DISTRIBUTION = "distribution"
"""Kind of the rows for distributions that brought no names, because they are broken or blocked."""

EPILOG = """\b
States:
  ready     can be used
  slow      can be used, but makes every command slow to start
  broken    cannot be imported; the cause is shown
  conflict  two distributions claim the name
  blocked   switched off with VU_DISABLE_PLUGINS
"""


@click.command("list-plugins", cls=Command, short_help="List everything that is installed.", epilog=EPILOG)
@click.option("--kind", metavar="KIND", help="One kind only, such as model.")
@click.option("--check", is_flag=True, help="Import every plugin; exit with 3 when one is broken or in conflict.")
@shared()
@click.pass_context
def list_plugins(context: click.Context, kind: str | None, check: bool) -> tuple[Entry, ...]:
    """List models, data, methods and everything else that is installed, with its distribution and state."""
    session = sessions.of(context)
    if kind is not None and kind not in (*KINDS, DISTRIBUTION):
        problem = f"There is no kind '{kind}'.{did_you_mean(kind, KINDS)}"
        raise ConfigError("VU-C125", problem, f"Kinds are: {', '.join(KINDS)}.", where="--kind")
    entries = _rows(session.plugins, kind)
    if check:
        with silenced():
            entries = tuple(map(_checked, entries))
        session.objection = _objection(entries)
    return entries


def _rows(plugins: Plugins, kind: str | None) -> tuple[Entry, ...]:
    failed = (_row(each) for each in plugins.distributions if each.state in ("broken", "blocked"))
    rows = (*map(_not_ours, plugins.registry.entries()), *failed)
    return tuple(entry for entry in rows if kind is None or entry.kind == kind)


def _not_ours(entry: Entry) -> Entry:
    """Mark a command that cannot be reached, because its name belongs to a command of `vu`."""
    taken = [name for name in entry.names if entry.kind == "command" and name in COMMANDS]
    if not taken:
        return entry
    return attrs.evolve(
        entry, state="conflict", contested=tuple(taken), cause=f"'{taken[0]}' is a command of vu itself"
    )


def _row(distribution: Distribution) -> Entry:
    name, version = distribution.name, distribution.version
    return Entry(DISTRIBUTION, name, "", "", name, version, state=distribution.state, cause=distribution.cause)


def _checked(entry: Entry) -> Entry:
    """Import the target; return the entry, ``broken`` with the problem alone if that fails."""
    if not entry.usable:
        return entry
    try:
        entry.load()
    except PluginError as error:
        origin = error.__cause__
        if isinstance(origin, VuError):
            cause = f"{type(origin).__name__}: {origin.problem}"
        else:
            cause = f"{type(origin).__name__}: {origin}" if origin is not None else error.problem
        return attrs.evolve(entry, state="broken", cause=cause)
    return entry


def _objection(entries: tuple[Entry, ...]) -> PluginError | None:
    bad = [entry for entry in entries if entry.state in ("broken", "conflict")]
    if not bad:
        return None
    words = {"conflict": "in conflict"}
    lines = [
        f"{entry.kind} '{entry.name}' of {entry.distribution} is {words.get(entry.state, entry.state)}: {entry.cause}"
        for entry in bad
    ]
    return PluginError(
        "VU-P121",
        "\n".join([f"{len(bad)} of {len(entries)} plugins cannot be used as they are.", *lines]),
        "Update, reinstall or uninstall the distributions named, or switch them off with VU_DISABLE_PLUGINS.",
    )
