"""``vu cache``: what is kept to save time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from vu_cli.command import Command
from vu_cli.options import shared
from vu_cli.session import Page
from vu_core import ConfigError, RecordError, Table, cache_root, did_you_mean
from vu_core.units import bytes_text

if TYPE_CHECKING:
    from vu_core.cache import Cache


class Group(click.Group):
    """The group of `vu cache`: a misspelt command is answered like one of `vu`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for. Raises: ConfigError with near misses."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            raise ConfigError(
                "VU-C121",
                f"There is no command '{name}' of `vu cache`.{did_you_mean(name, self.commands)}",
                f"Commands are: {', '.join(self.commands)}.",
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Group, short_help="List or clear what is kept to save time.", invoke_without_command=True)
@shared()
@click.pass_context
def cache(context: click.Context) -> Table | None:
    """List or clear what is kept to save time: nothing in it is needed.

    It lies in $VU_CACHE, else in the folder `vu` of your cache folder. Without a command, everything is listed.
    """
    return _table(None) if context.invoked_subcommand is None else None


@cache.command("list", cls=Command, short_help="List what is kept.")
@click.option("--kind", metavar="KIND", help="One kind only, such as before.")
@shared()
def list_entries(kind: str | None) -> Table:
    """List what is kept, newest first."""
    return _table(kind)


def _table(kind: str | None) -> Table:
    entries = _opened().entries(kind)
    rows = tuple((entry.kind, entry.about, entry.bytes, _moment(entry.modified)) for entry in entries)
    note = f"{len(rows)} files, {bytes_text(sum(entry.bytes for entry in entries))}, in {cache_root()}"
    return Table("", ("kind", "about", "bytes", "written (UTC)"), rows, (note,))


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


@cache.command(cls=Command, short_help="Delete what is kept.")
@click.option("--kind", metavar="KIND", help="One kind only, such as before.")
@shared()
def clear(kind: str | None) -> Page:
    """Delete what is kept; the next run computes it again."""
    gone = _opened().clear(kind)
    freed = sum(entry.bytes for entry in gone)
    text = f"Deleted {len(gone)} files, {bytes_text(freed)}, from {cache_root()}"
    return Page(text, {"files": len(gone), "bytes": freed, "folder": str(cache_root())})


def _opened() -> Cache:
    """Return the cache. Raises: RecordError when something else than a folder lies in its place."""
    from vu_core.cache import Cache

    root = cache_root()
    if root.exists() and not root.is_dir():
        raise RecordError(
            "VU-R123",
            f"The cache folder {str(root)!r} is a file.",
            "Point VU_CACHE to a folder, or move the file away.",
            where="VU_CACHE",
        )
    return Cache(root)
