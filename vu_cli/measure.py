"""``vu measure``: ask a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.options import measuring, reference_option, seeds_option, set_measuring_option, shared
from vu_cli.session import Measurement

EPILOG = """\b
Example:
  vu measure runs/0123456789ab --seeds 10
"""


@click.command(cls=Command, short_help="Measure a finished run again.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@seeds_option
@click.option("--split", metavar="SPLIT", help="validation or held-out; short for --set measure.split=SPLIT.")
@reference_option
@set_measuring_option
@shared(quiet=True)
@click.pass_context
def measure(
    context: click.Context,
    run: Path,
    seeds: int | None,
    split: str | None,
    reference: str | None,
    settings: tuple[str, ...],
) -> Measurement:
    """Measure a finished run again, with other settings of [measure] and [metric.NAME].

    The scores are written into a file beside those of the run, which stay as they are; its name is printed.
    """
    from vu_core import pipeline

    session = sessions.of(context)
    changes = measuring(settings, seeds=seeds, split=split, reference=reference)
    with session.watching() as heard:
        card = pipeline.measure_run(run, plugins=session.plugins, overrides=changes, on_event=heard)
    return Measurement(card, tuple(str(run / name) for name in heard.files), tuple(heard.warnings))
