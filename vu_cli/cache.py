"""``vu cache``: what is kept to save time."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from vu_cli import numbers
from vu_cli.options import shared
from vu_cli.session import Page
from vu_core import Table, cache_root


@click.group(short_help="List or clear what is kept to save time.")
def cache() -> None:
    """List or clear what is kept to save time: nothing in it is needed.

    It lies in $VU_CACHE, else in the folder `vu` of your cache folder.
    """


@cache.command("list", short_help="List what is kept.")
@click.option("--kind", metavar="KIND", help="One kind only, such as before.")
@shared()
def list_entries(kind: str | None) -> Table:
    """List what is kept, newest first."""
    from vu_core.cache import Cache

    entries = Cache(cache_root()).entries(kind)
    rows = tuple((entry.kind, entry.about, entry.bytes, _moment(entry.modified)) for entry in entries)
    note = f"{len(rows)} files, {numbers.size(sum(entry.bytes for entry in entries))}, in {cache_root()}"
    return Table("", ("kind", "about", "bytes", "written (UTC)"), rows, (note,))


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


@cache.command(short_help="Delete what is kept.")
@click.option("--kind", metavar="KIND", help="One kind only, such as before.")
@shared()
def clear(kind: str | None) -> Page:
    """Delete what is kept; the next run computes it again."""
    from vu_core.cache import Cache

    gone = Cache(cache_root()).clear(kind)
    freed = sum(entry.bytes for entry in gone)
    text = f"Deleted {len(gone)} files, {numbers.size(freed)}, from {cache_root()}"
    return Page(text, {"files": len(gone), "bytes": freed, "folder": str(cache_root())})
