"""``report.html`` and the model card: what was done to a model and what the numbers say."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import PurePath
from string import Template
from typing import TYPE_CHECKING, Any

from vu_core.config import as_dict, flat, short_origin
from vu_core.plan import Capability, ModelFacts
from vu_core.record import RunRecord
from vu_core.score import Score, Scorecard
from vu_core.units import bytes_text

if TYPE_CHECKING:
    from vu_core.stages.bench import Bench

Image = tuple[str, bytes, bytes]
"""Caption, PNG before, PNG after."""

CAUTION = {
    "validation": "These {} were free to be used for choosing settings: the numbers are optimistic.",
    "held-out": "vu lets no method see these {}.",
}
USAGE = {
    True: """- Look at one prompt before and after: `vu generate <this folder> "your prompt" --seed 1 --out pair.png`
- Measure again with more seeds: `vu measure <this folder> --set measure.seeds=10`""",
    False: "- Measure again: `vu measure <this folder>`",
}
"""What can be done with the edit of a model that makes images, and of one that does not."""


def report_html(record: RunRecord, bench: Bench, images: Sequence[Image]) -> str:
    """Return the report: claim, scores with intervals, images, sections of plugins, configuration with origins.

    It is one file without scripts, fonts or links to anywhere; images are data URIs.
    """
    card = record.scorecard
    return template("report.html").substitute(
        style=template("report.css").template,
        title=escape(title(record)),
        claim=escape(claim(record)),
        status=_status_html(card),
        scores=_score_table(card.scores) if card is not None else "<p>Nothing was measured.</p>",
        images=_grid(images),
        sections="\n".join(
            f"<h2>{escape(section.title)}</h2>\n{section.html}" for section in bench.run.report.sections
        ),
        facts=_rows(_facts(record, bench)),
        configuration=_configuration(bench),
    )


def model_card(record: RunRecord, bench: Bench, training: str = "") -> str:
    """Return ``README.md`` of a run folder: a model card with the scores and what they do not show.

    Args:
        record: what lies in the folder.
        bench: model, data and settings.
        training: a sentence about how the edit was trained.
    """
    card = record.scorecard
    scores = card.scores if card is not None else ()
    split = card.split if card is not None else "validation"
    base = bench.plan.model
    licence = f"The licence of the base model ({base.licence}) applies to the edited model too." if base.licence else ""
    files = {**record.files, "README.md": "this card"}
    generates = Capability.GENERATE in base.capabilities
    return template("card.md").substitute(
        front=f"base_model: {json.dumps(short_name(record.model))}"
        + (f"\nlicense: {json.dumps(base.licence)}" if base.licence else ""),
        title=title(record),
        claim=claim(record),
        status=" ".join(status_sentences(card)[1]),
        scores=score_lines(scores),
        split=split,
        training=f"\n{training}\n" if training else "",
        files="\n".join(f"- `{name}`: {what}" for name, what in files.items()),
        base=bench.model.facts.base_hash[:12],
        changed=changed_text(record.edit_facts),
        usage=USAGE[generates],
        **asked_words(base, split),
        licence=licence,
    )


def asked_words(facts: ModelFacts, split: str) -> dict[str, str]:
    """Return the words of a card about what was asked: seeds and prompts, or images of a model that makes none."""
    generates = Capability.GENERATE in facts.capabilities
    return {
        "caution": CAUTION[split].format("seeds" if generates else "images"),
        "asked": "prompts and seeds" if generates else "images",
        "others": "prompts" if generates else "images",
    }


def title(record: RunRecord) -> str:
    """Return such as ``canvas-diffusion without style:neon``."""
    return f"{short_name(record.model)} without {listed(record.forget)}"


def short_name(model: str) -> str:
    """Return what a reader calls a model: its plugin's name, hub id, or the last part of its path.

    Example:
        >>> short_name("canvas-diffusion"), short_name("diffusers=owner/name"), short_name("diffusers=/models/mine")
        ('canvas-diffusion', 'owner/name', 'mine')
    """
    name, _, ref = model.partition("=")
    return hub_id(model) or PurePath(ref).name or name


def hub_id(model: str) -> str:
    """Return the hub id of a model, or nothing; what lies on this machine is named by an absolute path.

    Example:
        >>> hub_id("diffusers=owner/name"), hub_id("diffusers=/models/mine"), hub_id("canvas-diffusion")
        ('owner/name', '', '')
    """
    ref = model.partition("=")[2]
    return ref if ref.count("/") == 1 and not ref.startswith((".", "/", "~")) else ""


def claim(record: RunRecord) -> str:
    """Return one sentence that says what was done and what the first telling score says about it.

    That is the first one that should rise, such as ``ua``; else the first one with a direction; else the first.
    """
    place = f" and show {listed(record.overwrite)} in its place" if record.overwrite else ""
    sentence = (
        f"The method {record.method} was to make {short_name(record.model)} forget {listed(record.forget)}{place}"
    )
    scores = record.scorecard.scores if record.scorecard is not None else ()
    if not scores:
        return sentence + "."
    telling = [score for score in scores if score.direction == "up"]
    telling += [score for score in scores if score.direction == "down"]
    first = (telling or list(scores))[0]
    was = f"went from {value_text(first.before, first.unit)} to" if first.before is not None else "is"
    return f"{sentence}: {first.name} {was} {value_text(first.after, first.unit)} (n = {first.n})."


def value_text(value: float | None, unit: str) -> str:
    """Return a number as the reader expects it: fractions as %, bytes in decimal multiples.

    Example:
        >>> value_text(0.975, "fraction"), value_text(2048, "bytes"), value_text(None, "mse")
        ('97.5 %', '2.0 kB', '')
    """
    if value is None:
        return ""
    if unit == "fraction":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        return bytes_text(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence lists them.

    Example:
        >>> listed(("style:neon",)), listed(("a", "b", "c"))
        ('style:neon', 'a, b and c')
    """
    found = list(words)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found) or "nothing"


def changed_text(facts: Mapping[str, Any]) -> str:
    """Return how much of a model an edit changes, from the facts of the edit."""
    tensors, numbers = facts.get("changed_tensors"), facts.get("changed_numbers")
    if tensors is None or numbers is None:
        return "the model"
    return f"{_counted(numbers, 'number')} in {_counted(tensors, 'tensor')}"


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def template(name: str) -> Template:
    """Return a template of the core."""
    return Template(resources.files("vu_core").joinpath("templates", name).read_text(encoding="utf-8"))


def status_sentences(card: Scorecard | None) -> tuple[bool, tuple[str, ...]]:
    """Return whether the scores raise no doubt, and what is said about them."""
    if card is None:
        return False, ("Nothing was measured.",)
    if card.status == "ok":
        return True, ("No metric raised a doubt about what was forgotten or what was kept.",)
    word = {"not_forgotten": "Forgetting did not happen.", "retain_collapsed": "What should stay was damaged."}
    return False, (word[card.status], *card.reasons)


def _status_html(card: Scorecard | None) -> str:
    fine, sentences = status_sentences(card)
    return f'<p class="{"ok" if fine else "doubt"}">{escape(" ".join(sentences))}</p>'


def score_lines(scores: Sequence[Score]) -> str:
    """Return the rows of a Markdown table; its columns are those of `HEADS` without the last."""
    return "\n".join(" | ".join(["", *_cells(score), ""]).strip() for score in scores)


def _cells(score: Score) -> list[str]:
    """Return name, before, after, change, n and interval of a score as text."""
    interval = ""
    if score.ci_low is not None and score.ci_high is not None:
        interval = f"{value_text(score.ci_low, score.unit)} to {value_text(score.ci_high, score.unit)}"
    return [
        score.name,
        value_text(score.before, score.unit),
        value_text(score.after, score.unit),
        _change_text(score),
        str(score.n),
        interval,
    ]


def _change_text(score: Score) -> str:
    change = score.change
    if change is None:
        return ""
    if score.unit == "fraction":
        return f"{100 * change:+.1f} points"
    return ("+" if change > 0 else "-" if change < 0 else "") + value_text(abs(change), score.unit)


HEADS = ("metric", "before", "after", "change", "n", "95 % interval", "")
REFERENCE_AT = 4
"""Place of the column of the reference, where a score has one."""


def _score_table(scores: Sequence[Score]) -> str:
    compared = any(score.reference is not None for score in scores)
    heads: list[tuple[str, bool]] = list(zip(HEADS, (False, True, True, True, True, False, False), strict=True))
    if compared:
        heads.insert(REFERENCE_AT, ("reference", True))
    numeric = [is_number for _, is_number in heads]
    head = "".join(f"<th{_class(is_number)}>{name}</th>" for name, is_number in heads)
    rows = []
    for score in scores:
        seeds = f"; seeds {_range(score.seeds)}" if score.seeds else ""
        cells = [*map(escape, _cells(score)), f'<span class="quiet">{escape(score.help + seeds)}</span>']
        if compared:
            cells.insert(REFERENCE_AT, escape(value_text(score.reference, score.unit)))
        rows.append("".join(f"<td{_class(number)}>{cell}</td>" for cell, number in zip(cells, numeric, strict=True)))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _range(seeds: Sequence[int]) -> str:
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 1 else ", ".join(map(str, seeds))


def _grid(images: Sequence[Image]) -> str:
    if not images:
        return ""
    figures = []
    for caption, before, after in images:
        pair = f'<img src="{_data_uri(before)}" alt="before"><img src="{_data_uri(after)}" alt="after">'
        figures.append(
            f'<figure><div class="pair">{pair}</div><figcaption>{escape(caption)}<br>'
            '<span class="quiet">left: before, right: after</span></figcaption></figure>'
        )
    return '<h2>Before and after</h2>\n<div class="images">\n' + "\n".join(figures) + "\n</div>"


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _facts(record: RunRecord, bench: Bench) -> list[tuple[str, str]]:
    environment, manifest = record.environment, bench.plan.manifest
    memory = environment["memory_gib"]
    size = f"{bytes_text(memory * 2**30)}, " if memory is not None else ""
    facts = [
        ("run", record.run_id),
        ("base model", f"{short_name(record.model)}, hash {bench.model.facts.base_hash[:12]}"),
        ("data", f"{short_name(record.data)}, digest {manifest.digest[:12]}; split: {manifest.split}"),
        ("edit", f"{changed_text(record.edit_facts)}, {bytes_text(record.edit_bytes)}"),
        ("time", ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in record.seconds.items())),
        (
            "machine",
            f"{environment['cores']} cores, {size}{environment['platform']}, "
            f"device {environment['device']}, {_counted(environment['threads'], 'thread')}, {environment['precision']}",
        ),
        ("versions", ", ".join(f"{name} {number}" for name, number in environment["versions"].items())),
    ]
    own = {key: value for key, value in record.edit_facts.items() if not key.startswith(("changed_", "base_model"))}
    facts += [(key.replace("_", " "), _short(value)) for key, value in sorted(own.items())]
    facts += [("note", note) for note in record.notes] + [("warning", warning) for warning in record.warnings]
    return facts


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple) and len(value) > 8:
        return f"{len(value)} entries, in the head of edit.safetensors"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 400 else text[:400] + " ..."


def _rows(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in pairs)
    return f'<div class="wide"><table>\n{rows}\n</table></div>'


def _configuration(bench: Bench) -> str:
    config = bench.plan.config
    shareable = dict(flat(as_dict(config, places=False)))
    rows = []
    for key, value in flat(as_dict(config)):
        if value is None or key == "run.out":  # says where a run is kept, not what it is
            continue
        if value != shareable[key]:  # where it lies is nobody else's business; `run.toml` knows
            value = f".../{PurePath(value).name}" if isinstance(value, str) else [each[:12] for each in shareable[key]]
        origin = escape(short_origin(config.origins.get(key, "default")))
        shown = escape(json.dumps(value, default=str))
        cells = (f"<code>{escape(key)}</code>", f"<code>{shown}</code>", f'<span class="quiet">{origin}</span>')
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return '<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>"
