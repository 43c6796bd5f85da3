"""``vu inspect``: what an adapter holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from vu_core import Table
from vu_elastic_lora.reading import Adapter, read_adapter
from vu_elastic_lora.sparsity import THRESHOLD, ModuleReport, report, totals, tuned_below

EPILOG = """\b
Columns:
  density       share of the weights that a mask or a list of indices lets change
  zero_percent  share of the change that is zero, mask and scale included
  norm          Frobenius norm of the change

\b
Examples:
  vu inspect runs/0123456789ab
  vu inspect pytorch_lora_weights.safetensors --json
"""

COLUMNS = ("module", "kind", "rank", "alpha", "gamma", "density", "zero_percent", "norm", "bytes")


def _at_least_zero(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:  # NaN would count nothing, and say so as if it were a fact
        raise click.BadParameter(f"{value} is not a number from 0 on.")
    return value


def _not_empty(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    if not value:
        raise click.BadParameter("it is empty.")
    return Path(value)


@click.command(short_help="Show ranks, masks, zeros and bytes of an edit or a LoRA file.", epilog=EPILOG)
@click.argument("adapter", metavar="RUN|FILE", callback=_not_empty)
@click.option(
    "--threshold",
    type=float,
    default=THRESHOLD,
    show_default=True,
    metavar="SIZE",
    callback=_at_least_zero,
    help="Changes of a weight up to this size count as zero in zero_percent.",
)
def inspect(adapter: Path, threshold: float) -> list[Table]:
    """Show what an adapter holds: per module its rank, scale, mask, zeros, norm and bytes, and all of it together.

    RUN|FILE is a run folder, an edit.safetensors, a LoRA file of diffusers, peft or kohya, or a folder with one of
    these. Nothing is downloaded, and no model is loaded.
    """
    found = read_adapter(adapter)
    reports = [report(change, threshold) for change in found.changes]
    return [_modules(reports), _totals(found, reports, threshold)]


def _modules(reports: list[ModuleReport]) -> Table:
    return Table("", COLUMNS, tuple(tuple(getattr(each, name) for name in COLUMNS) for each in reports))


def _totals(found: Adapter, reports: list[ModuleReport], threshold: float) -> Table:
    total = totals(reports)
    rows: list[tuple[str, Any]] = [
        ("file", str(found.file)),
        ("format", found.format),
        ("method", found.method),
        ("model", str(found.facts.get("base_model", ""))),
        ("base", found.base),
        ("modules", len(reports)),
        ("ranks", _ranks(total.ranks)),
        ("tuned parameters", total.tuned),
        *_share(found, reports),
        ("bytes", total.bytes),
        ("delta_zero_fraction", total.delta_zero_fraction),
        ("zero_percent overall", total.zero_percent),
        ("zero_percent overall_unweighted", total.zero_percent_unweighted),
    ]
    notes = [f"zero_percent counts changes of at most {threshold:g}; delta_zero_fraction counts exact zeros."]
    if total.unknown:
        notes.append(
            f"{total.unknown} of {len(reports)} tensors are replaced as a whole: how far they change is known only "
            "beside the base, so zeros and norms leave them out."
        )
    said = tuple(row for row in rows if row[1] != "")
    return Table("All together", ("what", "value"), said, (*notes, *found.notes))


def _ranks(ranks: dict[int, int]) -> str:
    if len(ranks) == 1:
        return str(next(iter(ranks)))
    return ", ".join(f"{rank} ({count} module{'' if count == 1 else 's'})" for rank, count in ranks.items())


def _share(found: Adapter, reports: list[ModuleReport]) -> list[tuple[str, float]]:
    """Return the tuned share of the denoiser, where the file says how large that is."""
    name, size = found.facts.get("denoiser"), found.facts.get("denoiser_parameters")
    if not isinstance(name, str) or not isinstance(size, int) or size < 1:
        return []
    return [(f"tuned parameters, % of {name}", 100 * tuned_below(reports, name) / size)]
