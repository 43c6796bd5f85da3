"""``vu measure``: ask a finished run again."""

from __future__ import annotations

from pathlib import Path

import click

from vu_cli import session as sessions
from vu_cli.command import Command
from vu_cli.options import overrides, set_option, shared
from vu_cli.progress import Heard
from vu_cli.render import watcher
from vu_cli.session import Measurement
from vu_cli.silence import silenced
from vu_core.config import Override

EPILOG = """\b
Example:
  vu measure runs/0123456789ab --seeds 10
"""


@click.command(cls=Command, short_help="Measure a finished run again.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--seeds", type=int, metavar="N", help="Seeds per item; short for --set measure.seeds=N.")
@click.option("--split", metavar="SPLIT", help="validation or held-out; short for --set measure.split=SPLIT.")
@set_option
@shared(quiet=True)
@click.pass_context
def measure(
    context: click.Context, run: Path, seeds: int | None, split: str | None, settings: tuple[str, ...]
) -> Measurement:
    """Measure a finished run again, with other settings of [measure] and [metric.NAME].

    The scores are written into a file beside those of the run, which stay as they are; its name is printed.
    """
    from vu_core import pipeline

    session = sessions.of(context)
    flags = {"--seeds": ("measure.seeds", seeds), "--split": ("measure.split", split)}
    given = tuple(Override(key, value, flag) for flag, (key, value) in flags.items() if value is not None)
    changes = (*overrides({}, settings), *given)
    with silenced(), watcher(session) as watch:
        heard = Heard(watch)
        card = pipeline.measure_run(run, plugins=session.plugins, overrides=changes, on_event=heard)
    return Measurement(card, tuple(str(run / name) for name in heard.files), tuple(heard.warnings))
