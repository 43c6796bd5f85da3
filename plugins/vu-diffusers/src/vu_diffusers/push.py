"""``vu push``: the edit of a run in a repository of the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vu_core import Event, Host, Table

if TYPE_CHECKING:
    from vu_core.exporting import Export
    from vu_diffusers.upload import Uploaded

EPILOG = """\b
Example:
  vu push runs/0123456789ab me/sd15-without-neon --private
"""
MAIN = "main"
"""The branch from which everybody loads who names none."""


@click.command("push", short_help="Put the edit of a run on the hub, proven as every export.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--to", metavar="FORMAT", default="diffusers", show_default=True, help="Name of an exporter.")
@click.option("--private", is_flag=True, help="Make the repository private; one that is public already is refused.")
@click.option("--revision", metavar="BRANCH", default=MAIN, show_default=True, help="Branch, made when there is none.")
@click.option(
    "--scale", type=float, metavar="S", default=1.0, show_default=True, help="Strength; 1 is the trained one."
)
@click.option(
    "--densify", type=float, metavar="STRENGTH", help="Hide where a sparse edit is by noise of this strength."
)
@click.option("--refit-rank", type=int, metavar="R", help="Bring the change to low rank by truncated SVD.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the format, see vu describe. Repeatable.",
)
@click.pass_obj
def push(
    host: Host,
    run: Path,
    repo: str,
    to: str,
    private: bool,
    revision: str,
    scale: float,
    densify: float | None,
    refit_rank: int | None,
    settings: tuple[str, ...],
) -> list[Table]:
    """Export the edit of RUN with its model card and upload it to REPO on the hub, OWNER/NAME, in one commit.

    It is exported into a temporary folder and compared with the edit, as by `vu export`; only what passes is uploaded.
    Who you are on the hub says HF_TOKEN or `hf auth login`; another hub than huggingface.co is named by HF_ENDPOINT.
    """
    from vu_core import exporting
    from vu_diffusers.upload import Repository

    told = exporting.told(settings)
    target = Repository.of(repo, revision)  # everything that needs no network comes first, then what is quick
    target.check_login()
    with host.watching() as on_event, tempfile.TemporaryDirectory(prefix="vu-push-") as place:
        folder = Path(place) / "export"
        address = repo if revision == MAIN else ""
        warnings: list[str] = []

        def heard(event: Event) -> None:
            if event.type == "warning":  # belongs to the result, whoever looks at the progress
                warnings.append(str(event.values.get("text", "")))
            on_event(event)

        made = exporting.export(
            run,
            to,
            folder,
            host,
            heard,
            settings=told,
            scale=scale,
            densify=densify,
            refit_rank=refit_rank,
            address=address,
        )
        on_event(Event("stage", "upload", {"state": "begin"}))
        uploaded = target.upload(folder, tuple(made.files), f"Add {made.title} ({made.format})", private=private)
        on_event(Event("stage", "upload", {"state": "end"}))
    return _tables(made, uploaded, warnings)


def _tables(made: Export, uploaded: Uploaded, warnings: Sequence[str]) -> list[Table]:
    checks = tuple((check.what, check.error, check.limit) for check in made.checks)
    told = tuple(f"warning: {text}" for text in dict.fromkeys(warnings))
    return [
        Table("Pushed", ("repository", "commit"), ((uploaded.address, uploaded.commit),), told),
        Table(f"As {made.format}", ("file", "bytes"), tuple(made.files.items()), made.changes),
        Table("Self-test", ("compared", "error", "limit"), checks),
    ]
