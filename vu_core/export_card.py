"""The model card of an export: what was forgotten, what the numbers say, how to load it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vu_core.config import as_dict, flat, toml_value
from vu_core.contracts import Check
from vu_core.plan import Capability
from vu_core.record import RunRecord
from vu_core.report import (
    asked_words,
    changed_text,
    claim,
    hub_id,
    score_lines,
    short_name,
    status_sentences,
    template,
    title,
)

if TYPE_CHECKING:
    from vu_core.exporting import Export
    from vu_core.stages.bench import Bench

SETTINGS = ("model", "unlearner", "weighting", "regularizer")
"""Tables of the configuration that a card shows whole; what a run measured and where it lies are not part of it."""


def export_card(export: Export, record: RunRecord, bench: Bench) -> str:
    """Return ``README.md`` of an export: a model card with a front matter that the hub reads.

    It names no place of this machine: of a model in a local folder, the name of the folder and the hash of its weights.

    Args:
        export: what was written, with its checks.
        record: the run.
        bench: the same run with its model.
    """
    card = record.scorecard
    split = card.split if card is not None else "validation"
    licence = bench.plan.model.licence
    kept = f" The licence of the base model ({licence}) applies to this edit of it too." if licence else ""
    changes = change_sentences(export.facts)
    unlike = " They are scores of the edit as it was trained, not of these files." if changes else ""
    return template("export.md").substitute(
        library=library_of(export.usage),
        tags=json.dumps(["machine-unlearning", "concept-erasure", record.method]),
        front=_front(record, bench),
        title=title(record),
        claim=claim(record),
        status=" ".join(status_sentences(card)[1]),
        format=export.format,
        changes="".join(f"\n{sentence}\n" for sentence in changes),
        where="" if export.address and export.address in export.usage else "In the folder of these files:\n\n",
        usage=export.usage,
        facts=_rows(_facts(record, bench)),
        scores=score_lines(card.scores if card is not None else ()),
        split=split,
        **asked_words(bench.plan.model, split),
        unlike=unlike,
        settings=_rows(_settings(bench)),
        checks=_rows((check.what, *check_texts(check)) for check in export.checks),
        licence=kept,
    )


def change_sentences(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one sentence per way in which an export differs from the trained edit.

    Example:
        >>> change_sentences({"scale": 0.5})
        ('It was scaled: its strength is 0.5 of the trained one.',)
    """
    said = []
    if "scale" in facts:
        said.append(f"It was scaled: its strength is {facts['scale']:g} of the trained one.")
    if "densify" in facts:
        said.append(
            f"It was densified: noise of {facts['densify']:g} times the size of the change lies on the weights that "
            "the trained edit leaves alone, so that the place of the change does not tell the concept."
        )
    if "refit_rank" in facts:
        seen = ""
        if "refit_denoiser_error" in facts:
            error = percent(facts["refit_denoiser_error"])
            seen = f", and the denoiser's outputs on forgotten captions by {error} of what the edit changes there"
        said.append(
            f"It was refitted to rank {facts['refit_rank']} by truncated SVD: the change of the weights is off by "
            f"{percent(facts['refit_error'])} (relative Frobenius error){seen}."
        )
    return tuple(said)


def percent(error: float) -> str:
    """Return a relative error with two digits.

    Example:
        >>> percent(0.03217), percent(2.5e-7), percent(0.0)
        ('3.2 %', '2.5e-05 %', '0 %')
    """
    return f"{100 * error:.2g} %"


def check_texts(check: Check) -> tuple[str, str]:
    """Return error and limit of a check.

    Example:
        >>> check_texts(Check("image", 0.0, 1.0)), check_texts(Check("denoiser", 2.417e-7, 1e-4))
        (('0', '1'), ('2.4e-07', '0.0001'))
    """
    return f"{check.error:.2g}", f"{check.limit:g}"


def library_of(usage: str) -> str:
    r"""Return the library that loads an export: the one that the lines of its usage import last.

    Example:
        >>> library_of("import torch\nfrom diffusers import StableDiffusionPipeline")
        'diffusers'
    """
    modules = [
        name
        for node in ast.walk(ast.parse(usage))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    ]
    root = modules[-1].partition(".")[0] if modules else "vu"
    return "vu" if root.startswith("vu_") else root


def _front(record: RunRecord, bench: Bench) -> str:
    """Return the lines of the front matter that not every export has.

    The hub takes ``base_model`` for an address: a model that lies in a folder has none.
    """
    found = {
        "base_model": hub_id(record.model),
        "license": bench.plan.model.licence,
        "pipeline_tag": "text-to-image" if Capability.GENERATE in bench.plan.model.capabilities else "",
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in found.items() if value)


def _facts(record: RunRecord, bench: Bench) -> Iterable[tuple[str, str]]:
    source = bench.unlearner.source
    entry = bench.plan.config.unlearner.entry
    yield "base model", f"{short_name(record.model)}, hash of its weights {bench.model.facts.base_hash[:12]}"
    yield "licence of the base", bench.plan.model.licence or "not stated in its files"
    yield "forgotten", ", ".join(record.forget)
    if record.overwrite:
        yield "shown in its place", ", ".join(record.overwrite)
    yield "method", f"{record.method} ({entry.distribution} {entry.version})"
    yield "after", f"[{source.paper}]({source.url})" if source.url else source.paper
    yield "data", f"{bench.plan.manifest.name}, digest {bench.plan.manifest.digest[:12]}"
    yield "changes", changed_text(record.edit_facts)
    yield "run", record.run_id


def _settings(bench: Bench) -> Iterable[tuple[str, str]]:
    """Yield the settings of model and method with the seed; places on this machine are left out."""
    config = bench.plan.config
    for key, value in flat(as_dict(config, places=False)):
        shown = key.partition(".")[0] in SETTINGS or key in ("run.seed", "run.precision")
        if shown and value is not None and value != "":
            yield f"`{key}`", f"`{toml_value(value)}`"


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    """Return the rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
