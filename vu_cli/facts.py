"""What is said about a plan, a run and a plugin, as rows of (label, text)."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

from vu_cli import numbers
from vu_core import Plan, RunRecord
from vu_core.config import Choice, RunConfig, plain
from vu_core.config.run_config import wrapped
from vu_core.sequence_record import SequencePlan
from vu_core.units import bytes_text

if TYPE_CHECKING:
    from vu_core.describe import Description

Rows = list[tuple[str, str]]
"""Rows without text are not shown."""


def of_plan(plan: Plan) -> Rows:
    """Return what a run will do and cost."""
    concepts = [f"{c.text} -> {c.overwrite}" if c.overwrite else c.text for c in plan.selection.concepts]
    counts = ", ".join(f"{number:,} {name}" for name, number in plan.manifest.counts.items())
    size = [numbers.count(plan.model.parameters) + " parameters", f"{plan.model.resolution} px", plan.model.prediction]
    model, data = (f"{part.name}={part.ref}" if part.ref else part.name for part in (plan.model, plan.manifest))
    cost = plan.cost
    return [
        *choices(plan.config),
        ("model", f"{model}: {', '.join(filter(None, size))}"),
        ("data", f"{data}: {counts}"),
        ("forget", ", ".join(concepts)),
        ("time", f"about {numbers.duration(cost.seconds)}"),
        ("memory", f"about {bytes_text(cost.memory)}"),
        ("disk", f"about {bytes_text(cost.disk)}"),
        ("images", f"{cost.images:,} to generate"),
        ("downloads", bytes_text(cost.downloads) if cost.downloads else "none"),
    ]


def of_sequence_plan(plan: SequencePlan) -> Rows:
    """Return what the runs of a sequence share, and what all of them cost together."""
    first, cost = plan.plans[0], plan.cost
    own = ("data", "forget", "time", "memory", "disk", "images", "seed")
    seeds = f"{plan.seeds[0]}" if len(plan.seeds) == 1 else f"{plan.seeds[0]} to {plan.seeds[-1]}"
    return [
        ("sequence", plan.name),
        *(row for row in of_plan(first) if row[0] not in own),
        ("data", first.manifest.name),
        ("seeds", seeds),
        ("time", f"about {numbers.duration(cost.seconds)} for all {len(plan.tasks) * len(plan.seeds)} runs"),
        ("memory", f"about {bytes_text(cost.memory)}"),
        ("disk", f"about {bytes_text(cost.disk)}"),
        ("images", f"{cost.images:,} to generate"),
    ]


def of_record(record: RunRecord) -> Rows:
    """Return what a run was asked for and how long it took."""
    overwrite = f" (overwritten by {', '.join(record.overwrite)})" if record.overwrite else ""
    stages = ", ".join(f"{stage} {numbers.duration(seconds)}" for stage, seconds in record.seconds.items())
    time = f"{numbers.duration(sum(record.seconds.values()))} ({stages})" if stages else ""
    return [("forget", ", ".join(record.forget) + overwrite), ("time", time)]


def of_description(description: Description) -> Rows:
    """Return where a plugin comes from and what it needs."""
    entry, source = description.entry, description.source
    rows = [
        ("aliases", ", ".join(entry.aliases)),
        ("from", f"{entry.distribution} {entry.version}"),
        ("state", entry.state + (f": {entry.cause}" if entry.cause else "")),
    ]
    if source is not None:
        rows += [("paper", source.paper), ("address", source.url), ("provenance", source.provenance)]
    needs = ", ".join(need.replace("|", " or ") for need in entry.needs)
    return [*rows, ("needs", needs), ("axes", ", ".join(entry.axes))]


def choices(config: RunConfig) -> Rows:
    """Return (word, who and how) for the method and its axes, as the plan shows them."""
    from vu_core.training import Training

    training = getattr(config.unlearner.config, "training", None)
    method = _who(config.unlearner)
    if isinstance(training, Training):
        length = f"{training.steps:,} steps" if training.steps is not None else f"{training.epochs} epochs"
        method += (
            f": {length}, batch {training.batch_size} + {training.batch_size}, lr {training.lr:g} {training.schedule}"
        )
    rows = [("method", method)]
    for settings, named_by in wrapped(config.unlearner.config):
        inside, told = (getattr(config.unlearner.config, field) for field in (named_by, settings))
        rows.append(("inside", _told(inside, told)))
    axes = {"parameters": config.parameters, "weighting": config.weighting, "attribution": config.attribution}
    rows += [(word, _with_settings(choice)) for word, choice in axes.items() if choice is not None]
    rows += [("regularizer", _with_settings(choice)) for choice in config.regularizers]
    return [*rows, ("seed", str(config.run.seed)), ("device", f"{config.run.device}, {config.run.precision}")]


def _who(choice: Choice) -> str:
    return f"{choice.name} ({choice.entry.distribution} {choice.entry.version})"


def _with_settings(choice: Choice) -> str:
    return _told(choice.name, plain(choice.config))


def _told(name: str, settings: Mapping[str, Any]) -> str:
    """Return a name and its settings, without those that are empty."""
    told = [f"{key} {_brief(value)}" for key, value in settings.items() if value not in (None, [], "")]
    return f"{name}: {', '.join(told)}" if told else name


def _brief(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def value_text(value: Any) -> str:
    """Return a value as a configuration file writes it; ``(none)`` for an absent one."""
    from vu_core.config import toml_value

    return "(none)" if value is None else toml_value(value)


_SKIPPED = {"Args:", "Returns:", "Yields:", "Raises:", "Example:", "Examples:", "Source:", "Attributes:"}
"""Sections of a docstring for readers of the code; what they say of a plugin is shown in other ways."""


def prose(docstring: str) -> str:
    r"""Return what a docstring tells a user: its text and its deviations.

    A paragraph is one line. Formulas, set in behind a paragraph that ends in ``::``, and tables keep their lines.

    Example:
        >>> prose("Do it.\n\nIn two\nlines.\n\nArgs:\n    x: y.\n\nDeviates:\n    Not at all.")
        'Do it.\n\nIn two lines.\n\nDeviates: Not at all.'
        >>> prose("With x::\n\n    a = x\n    b = 2 x\n\nThe\nend.")
        'With x:\n\n    a = x\n    b = 2 x\n\nThe end.'
    """
    kept: list[str] = []
    skipping = formula = False
    for block in docstring.strip().split("\n\n"):
        lines = block.splitlines()
        inside = block.startswith(" ")
        formula = formula and inside
        skipping = lines[0].strip() in _SKIPPED or (skipping and inside)
        if skipping:
            continue
        if formula or lines[0].startswith("==="):
            kept.append(indent(dedent(block), "    "))
            continue
        text = " ".join(line.strip() for line in lines).replace("``", "`")
        formula = text.endswith("::")
        text = text.removesuffix("::").rstrip() + ":" if formula else text
        kept.append(f"  {text.removeprefix('.. math:: ')}" if text.startswith(".. math:: ") else text)
    return "\n\n".join(kept)
