"""``vu extract``: a smaller adapter out of an elastic one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vu_core import ConfigError, Event, Host, RunRecord, Section, Table, did_you_mean
from vu_elastic_lora.groups import VERSIONS, RankGroup, Version, assigned, gathered, ranks_text
from vu_elastic_lora.trials import Limits

if TYPE_CHECKING:
    from vu_core import Edit
    from vu_elastic_lora.trials import Search

SPLIT = "validation"
"""What a search measures on: what is chosen by held-out scores could not be judged by them."""

LIMITS = {"trials": "--trials", "seconds": "--time", "seeds": "--seeds", "tolerance": "--tolerance"}
"""Fields of `Limits` and the options that set them."""

EPILOG = """\b
Examples:
  vu extract runs/0123456789ab --rank heuristic --out small
  vu extract runs/0123456789ab --search --trials 40 --time 30m --out small
  vu extract runs/0123456789ab --rank small/chosen_ranks.json --out again
"""


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    """Understand ``90s``, ``10m``, ``1h30m`` or a number of seconds."""
    amount = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{amount}|(?:{amount}h)?(?:{amount}m)?(?:{amount}s)?", text.strip())
    parts = [float(part or 0) for part in found.groups()] if found else []
    seconds = sum(part * unit for part, unit in zip(parts, (1, 3600, 60, 1), strict=True)) if parts else 0.0
    if not seconds or not math.isfinite(seconds):
        raise click.BadParameter(f"{text!r} is no time above zero; write 90s, 10m or 1h30m.")
    return seconds


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number.")
    return value


@click.command(short_help="Cut a smaller adapter out of an elastic one.", epilog=EPILOG)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--rank", metavar="VERSION|FILE", help="maximal, heuristic or minimal; or a file with a rank per group.")
@click.option("--default", type=click.Choice(VERSIONS), help="Version of the groups that FILE leaves out.")
@click.option("--search", is_flag=True, help="Measure many assignments of ranks and take the smallest good one.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    metavar="N",
    default=24,
    show_default=True,
    help="Assignments that a search measures.",
)
@click.option(
    "--time",
    "seconds",
    callback=_seconds,
    metavar="TIME",
    default="10m",
    show_default=True,
    help="No further assignment is begun after 90s, 10m or 1h30m.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Seeds per item in a search."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    callback=_finite,
    metavar="X",
    default=0.02,
    show_default=True,
    help="How much worse than the whole adapter a score of a search may be: 0.02 = two points of a percentage, 2 % of "
    "any other score.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new or empty folder.")
@click.pass_context
def extract(
    context: click.Context,
    /,
    run: Path,
    rank: str | None,
    default: Version | None,
    search: bool,
    out: Path,
    **limits: Any,
) -> list[Table | RunRecord]:
    """Cut a smaller adapter out of RUN, without training, and measure it.

    DIR/sub is a run of the extracted adapter, measured as RUN was; DIR/super holds the whole adapter;
    DIR/elastic_adapter_config.json names the ranks that every group can have. A search measures on validation data
    only, leaves all it has seen in DIR/search.json and its choice in DIR/chosen_ranks.json.
    """
    from vu_core import workbench
    from vu_elastic_lora.extraction import extracted, groups_of
    from vu_elastic_lora.out_folder import SUB, new_folder, write_super

    host: Host = context.obj
    _check_options(context)
    with host.watching() as on_event:
        record, edit = workbench.read(run)
        groups = groups_of(edit)
        ranks = {} if search else _chosen(rank or "", groups, default)
        sections: list[Section] = []
        tables: list[Table] = []
        with new_folder(out):
            if search:
                ranks, table, section = _searched(run, host, on_event, edit, Limits(**limits), out)
                tables, sections = [table], [section]
            whole = write_super(out, edit, groups)
            part = workbench.Component.of(record, extracted(edit, ranks))
            sub = workbench.compose(run, [part], host, on_event, out=str(out / SUB), sections=sections)
    return [*tables, sub, _sizes(groups, ranks, whole.stat().st_size, sub.edit_bytes, out)]


def _check_options(context: click.Context) -> None:
    """Refuse options that do not fit together. Raises: ConfigError ``VU-C091``."""
    rank, search = context.params["rank"], context.params["search"]
    typed = click.core.ParameterSource.COMMANDLINE
    limits = [flag for name, flag in LIMITS.items() if context.get_parameter_source(name) is typed]
    wrong = ""
    if search and rank is not None:
        wrong = "Either --rank or --search says which ranks to take, not both."
    elif not search and rank is None:
        wrong = "Neither --rank nor --search says which ranks to take."
    elif limits and not search:
        verb = "belongs" if len(limits) == 1 else "belong"
        wrong = f"{' and '.join(limits)} {verb} to --search, which is not asked for."
    elif context.params["default"] is not None and (search or rank in VERSIONS):
        wrong = "--default belongs to --rank FILE: it says the ranks of the groups that the file leaves out."
    if wrong:
        remedy = "Use --rank maximal, heuristic, minimal or a FILE; or --search. `vu extract --help` shows all."
        raise ConfigError("VU-C091", wrong, remedy, where="vu extract")


def _chosen(rank: str, groups: Sequence[RankGroup], default: Version | None) -> dict[str, int]:
    """Return the rank of every weight that a version or a file says."""
    from vu_elastic_lora.adapter_config import read_ranks

    if rank in VERSIONS:
        return assigned(groups, rank)
    there = False
    with suppress(OSError):  # a name that is too long, a folder that may not be looked into
        there = rank != "" and Path(rank).exists()  # the empty path is the folder one is in
    if not there:
        raise ConfigError(
            "VU-C092",
            f"{rank!r} is no version of the adapter and no file.{did_you_mean(rank, VERSIONS)}",
            f"Name one of {', '.join(VERSIONS)}, or a file with a rank for every group.",
            where="--rank",
        )
    return read_ranks(Path(rank), groups, default)


def _searched(
    run: Path, host: Host, on_event: Callable[[Event], None], edit: Edit, limits: Limits, out: Path
) -> tuple[dict[str, int], Table, Section]:
    """Search for ranks; ``search.json`` holds everything measured after every trial, and says if that was all."""
    from vu_core import workbench
    from vu_elastic_lora.adapter_config import ranks_to_json
    from vu_elastic_lora.front import front_section, front_table
    from vu_elastic_lora.out_folder import CHOSEN, SEARCH, write_file
    from vu_elastic_lora.search import search

    settings = {"measure.split": SPLIT, "measure.seeds": limits.seeds}
    with workbench.opened(run, host, _only_weighty(on_event), settings=settings) as bench:
        about = _about(bench.record, edit, limits)

        def on_trial(found: Search) -> None:
            write_file(out / SEARCH, found.to_json(about))
            total = min(limits.trials, found.distinct)
            step = {"what": "assignments", "step": len(found.trials), "total": total, **found.trials[-1].scores}
            on_event(Event("progress", "search", step, durable=False))

        on_event(Event("stage", "search", {"state": "begin"}))
        found = search(edit, bench.measure, bench.run, limits, on_trial=on_trial)
        on_event(Event("stage", "search", {"state": "end"}))
    write_file(out / SEARCH, found.to_json(about))
    write_file(out / CHOSEN, ranks_to_json(found.groups, found.ranks()))
    return found.ranks(), front_table(found, SPLIT, limits.seeds), front_section(found, SPLIT, limits.seeds)


def _about(record: RunRecord, edit: Edit, limits: Limits) -> dict[str, Any]:
    """Return what was searched, and how."""
    from importlib.metadata import version

    from vu_core.adapters import edit_digest

    return {
        "run": record.run_id,
        "edit": edit_digest(edit),
        "split": SPLIT,
        "seeds": limits.seeds,
        "budget": {"trials": limits.trials, "seconds": limits.seconds},
        "versions": {name: version(name) for name in ("vu-core", "vu-elastic-lora", "optuna", "torch")},
    }


def _only_weighty(on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """Let through how the model is loaded, and warnings; not what metrics tell about every candidate."""

    def hear(event: Event) -> None:
        if event.stage == "load" or event.type == "warning":
            on_event(event)

    return hear


def _sizes(groups: Sequence[RankGroup], ranks: dict[str, int], whole: int, part: int, out: Path) -> Table:
    """Return the ranks of the extracted adapter and what it weighs beside the whole one."""
    chosen = gathered(groups, ranks)
    notes = [f"Written to {out}: super/ holds the whole adapter, sub/ the run of the extracted one."]
    if all(len(group.search_space) == 1 for group in groups):
        notes.append("It was trained at one rank, so nothing was cut; --parameters elastic-lora trains several.")
    return Table(
        "Extracted",
        ("groups", "ranks", "super bytes", "sub bytes", "share"),
        ((len(groups), ranks_text(chosen), whole, part, f"{100 * part / whole:.0f} %"),),
        tuple(notes),
    )
