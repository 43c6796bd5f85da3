"""``vu tune-uce``: the three scales of UCE, chosen on validation prompts."""

from __future__ import annotations

import errno
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import click

from vu_concept_editing.scales import RULES, Scales, Trial, check_scores, chosen, grid
from vu_core import ConfigError, Event, Host, RecordError, RunRecord, Table, write_text

METHOD = "uce"
RUN_TOML = "run.toml"
KEYS = {"erase": "erase_scale", "preserve": "preserve_scale", "regularization": "regularization"}
"""Fields of `Scales` and the keys of ``[unlearner]`` that set them."""

SPLIT = "validation"
"""What a search measures on: what is chosen by held-out scores could not be judged by them."""

EPILOG = """\b
Examples:
  vu tune-uce runs/0123456789ab --out tuned.toml
  vu tune-uce runs/0123456789ab --erase 1,10 --preserve 1,3 --regularization 0.5 --max-fall 0.02 --out tuned.toml
  vu unlearn -c tuned.toml --set measure.split=held-out
"""


def _numbers(least: float, above: bool) -> Callable[[click.Context, click.Parameter, str], tuple[float, ...]]:
    """Return a callback that understands ``0.3,0.5``, with a bound on every number."""

    def understand(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[float, ...]:
        found = []
        for part in text.split(","):
            try:
                number = float(part)
            except ValueError:
                number = math.nan
            if not math.isfinite(number) or number < least or (above and number == least):
                bound = f"above {least:g}" if above else f"of at least {least:g}"
                raise click.BadParameter(f"{part.strip()!r} is no number {bound}; write 0.3,0.5.")
            found.append(number)
        return tuple(dict.fromkeys(found))

    return understand


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """Refuse NaN, which no range leaves out."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.")
    return value


@click.command(short_help="Search for the three scales of UCE.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--erase",
    callback=_numbers(0, True),
    metavar="E,...",
    default="0.3,0.5,0.7,0.9",
    show_default=True,
    help="Values of unlearner.erase_scale.",
)
@click.option(
    "--preserve",
    callback=_numbers(0, False),
    metavar="Q,...",
    default="0.5,1,1.5,2.5",
    show_default=True,
    help="Values of unlearner.preserve_scale.",
)
@click.option(
    "--regularization",
    callback=_numbers(0, True),
    metavar="L,...",
    default="0.3,0.5,0.8",
    show_default=True,
    help="Values of unlearner.regularization.",
)
@click.option(
    "--choose",
    "rule",
    type=click.Choice(RULES),
    default="kept",
    show_default=True,
    help="kept: the highest UA at which IRA and CRA hold --max-fall. mean: the highest mean of the three.",
)
@click.option(
    "--max-fall",
    type=click.FloatRange(0, 1),
    callback=_finite,
    metavar="X",
    default=0.05,
    show_default=True,
    help="How far IRA and CRA may fall below those of the untouched model: 0.05 = five points.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Seeds per prompt."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="A new configuration file.")
@click.pass_obj
def tune_uce(
    host: Host, /, run: Path, rule: str, max_fall: float, seeds: int, out: Path, **values: tuple[float, ...]
) -> Table:
    """Search for the three scales of the UCE run RUN on validation prompts.

    Every combination is solved, which takes seconds, and measured as RUN was. FILE is the configuration of RUN with the
    scales that were chosen. Without other values the grid is that of the authors. Scales with the same ratios of e, q
    and lambda have the same solution and are measured once.
    """
    from vu_core import workbench

    with host.watching() as on_event:
        record, _ = workbench.read(run)
        _check_run(record)
        points = grid(**values)
        # Whatever could end the search without a file is looked at before anything is measured.
        configuration(run, points[0])
        _check_out(out)
        trials = _measured(run, host, on_event, points, seeds)
        best = chosen(trials, rule, max_fall)
        text = configuration(run, best.scales)
        with _writing(out):
            write_text(out, text)
    return _table(trials, best, rule, max_fall, seeds, out)


def _check_run(record: RunRecord) -> None:
    """Refuse a run of another method, and one whose scores say nothing. Raises: ConfigError."""
    if record.method != METHOD:
        raise ConfigError(
            "VU-C108",
            f"The run {str(record.folder)!r} was made by {record.method!r}, which has no scales of UCE.",
            "Name a run that `vu unlearn --method uce` has made.",
            where=str(record.folder),
        )
    if record.scorecard is not None:
        check_scores(record.scorecard)


def _measured(
    run: Path, host: Host, on_event: Callable[[Event], None], points: Sequence[Scales], seeds: int
) -> list[Trial]:
    """Solve and measure every point; the texts are embedded once."""
    from vu_concept_editing.columns import read_columns
    from vu_concept_editing.uce import solved, text_layers
    from vu_core import workbench

    settings = {"measure.split": SPLIT, "measure.seeds": seeds}
    trials: list[Trial] = []
    with workbench.opened(run, host, _only_weighty(on_event), settings=settings) as bench:
        config: Any = bench.bench.plan.config.unlearner.config
        layers = text_layers(bench.model, config.layers)
        columns = read_columns(bench.model, bench.examples(), config)
        on_event(Event("stage", "search", {"state": "begin"}))
        for scales in points:
            edit = solved(layers, columns, scales, config.layers)
            trials.append(Trial.of(scales, bench.measure(attrs.evolve(edit, base=bench.edit.base))))
            known = {"ua": trials[-1].forgotten, **trials[-1].kept}
            step = {"what": "scales", "step": len(trials), "total": len(points), **known}
            on_event(Event("progress", "search", step, durable=False))
        on_event(Event("stage", "search", {"state": "end"}))
    return trials


def _only_weighty(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """Let through how the model is loaded, and warnings; not what metrics tell about every point."""

    def hear(event: Event) -> None:
        if event.stage == "load" or event.type == "warning":
            on_event(event)

    return hear


def configuration(run: Path, scales: Scales) -> str:
    """Return the text of the run's configuration with other scales.

    Raises:
        RecordError: ``VU-R056`` when its ``run.toml`` cannot be read or does not hold them.
    """
    path = run / RUN_TOML
    wanted = {key: getattr(scales, field) for field, key in KEYS.items()}
    try:
        head, table, rest = re.split(r"(?m)^(\[unlearner\]\n)", path.read_text(encoding="utf-8"), maxsplit=1)
        own, *others = re.split(r"(?m)^(?=\[)", rest, maxsplit=1)
        for key, value in wanted.items():
            own = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value!r}  # vu tune-uce", own)
        text = "".join([head, table, own, *others])
        found = tomllib.loads(text)["unlearner"]
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, str(error)) from error
    if any(found.get(key) != value for key, value in wanted.items()):
        raise _unreadable(path, f"[unlearner] does not set {', '.join(wanted)}")
    return text


def _unreadable(path: Path, why: str) -> RecordError:
    return RecordError(
        "VU-R056",
        f"{str(path)!r} cannot be read: {why}.",
        "Name the folder of a run as `vu unlearn` has left it.",
        where=str(path),
    )


def _check_out(out: Path) -> None:
    """Refuse a file that is there (``VU-R050``) or cannot be (``VU-R055``). Raises: RecordError."""
    with _writing(out):
        if out.exists():
            raise RecordError(
                "VU-R050", f"{str(out)!r} exists already.", "Name an --out that does not exist yet.", where="--out"
            )
        place = next(folder for folder in out.absolute().parents if folder.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(place)!r} is no folder")
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(
            "VU-R055",
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            "Check that its folder can be written to, or choose another --out.",
            where="--out",
        ) from error


def _table(trials: Sequence[Trial], best: Trial, rule: str, max_fall: float, seeds: int, out: Path) -> Table:
    """Return everything that was measured, and why one was chosen."""
    names = tuple(best.kept)
    rows = tuple(
        (
            "chosen" if trial is best else "",
            trial.scales.erase,
            trial.scales.preserve,
            trial.scales.regularization,
            *(f"{100 * value:.1f} %" for value in (trial.forgotten, *(trial.kept[name] for name in names))),
            f"{100 * trial.fall:.1f}",
        )
        for trial in trials
    )
    asked = " and ".join(name.upper() for name in names)
    why = f"the highest UA at which {asked} fall by at most {100 * max_fall:g} points"
    why = f"the highest mean of UA, {asked}" if rule == "mean" else why
    return Table(
        "Scales of UCE",
        ("", "erase", "preserve", "regularization", "ua", *names, "points lost"),
        rows,
        (
            f"{len(trials)} combinations measured on {SPLIT} prompts, seeds per prompt: {seeds}.",
            f"chosen: {why}; of equal ones the one that keeps more.",
            f"Written to {out}: vu unlearn -c {out}",
        ),
    )
