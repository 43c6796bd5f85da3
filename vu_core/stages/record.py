"""All of it -> the run folder, and the run folder -> RunRecord."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vu_core import run_folder
from vu_core.atomic import write_bytes
from vu_core.conflict import read_conflict
from vu_core.errors import RecordError
from vu_core.event import Event
from vu_core.record import RunRecord
from vu_core.run_folder import (
    CARD,
    CONFLICT,
    EDIT,
    ENVIRONMENT,
    EVENTS,
    IMAGES,
    INTERFERENCE,
    REPORT,
    RUN,
    SCORES,
    SOURCES,
)
from vu_core.safetensors_header import read_header
from vu_core.score import Scorecard, scorecard_from_json, scorecard_to_json

if TYPE_CHECKING:
    import numpy as np

    from vu_core.stages.bench import Bench
    from vu_core.stages.measure import Measured, Samples

FILES: Mapping[str, str] = {
    RUN: "the resolved configuration; `vu unlearn -c run.toml` repeats the run",
    EDIT: "what was changed in the model",
    SOURCES: "the edits that this one was made of",
    SCORES: "the scores, before and after",
    INTERFERENCE: "which of the edits hurts which concept",
    CONFLICT: "how the gradients of forgetting and keeping agree",
    REPORT: "the report: scores, images, configuration",
    CARD: "the model card",
    IMAGES: "the images of the report",
    EVENTS: "what happened, line by line",
    ENVIRONMENT: "versions, threads and machine",
}
"""What lies in a run folder, and what it is."""
SCORES_FORMAT = 1
"""``format`` of ``scores.json``; see `vu_core.score.scorecard_to_json`."""


def begin(bench: Bench, *, resuming: bool) -> None:
    """Write ``environment.json``, or compare it when a run is resumed.

    Raises:
        RecordError: the base model or torch is not the one the run began with (``VU-R053``).
    """
    from vu_core.stages.load import environment

    run, path = bench.run, bench.run.folder / ENVIRONMENT
    now = environment(bench.plan, bench.model.facts.base_hash)
    if resuming and path.exists():
        then = run_folder.read_json(path)
        names = {"base_hash": "the weights of the model", "torch": "torch", "python": "python"}
        changed = [
            f"{word} (was {str(then.get(key))[:12]}, is {str(now[key])[:12]})"
            for key, word in names.items()
            if then.get(key) != now[key]
        ]
        if changed:
            raise run_folder.changed_since(run.folder, changed)
        if then.get("threads") != now["threads"]:
            run.emit_event(Event("warning", "load", {"text": _other_threads(then.get("threads"), now["threads"])}))
        return
    _write(path, json.dumps(now, indent=2) + "\n")


def _other_threads(then: Any, now: Any) -> str:
    return f"The run began with {then} CPU threads and goes on with {now}: the last bits of the result may differ."


def record(bench: Bench, measured: Measured) -> None:
    """Write scores, images, report and, last, the model card, each atomically."""
    from vu_core.report import model_card, report_html

    folder = bench.run.folder
    images = _write_images(folder, measured.samples) if measured.samples is not None else ()
    _write(folder / SCORES, scores_text(measured.scorecard))
    training = _record_conflict(bench)
    _write(folder / REPORT, report_html(read_record(folder), bench, images))
    _write(folder / CARD, model_card(read_record(folder), bench, training))


def _record_conflict(bench: Bench) -> str:
    """Write, show and tell how the gradients agreed, where events tell of it; return it in one sentence."""
    from vu_core.conflict_section import conflict_section

    run = bench.run
    found = read_conflict(run.folder)
    if found is None:
        return ""
    found.write(run.folder)
    section = conflict_section(found)
    run.report.add(section.title, section.html)
    run.emit_event(Event("note", "record", {"text": found.sentence}))
    return found.sentence


def _write(path: Path, content: str | bytes) -> None:
    with run_folder.writing(path):
        write_bytes(path, content.encode() if isinstance(content, str) else content)


def scores_text(card: Scorecard) -> str:
    """Return the text of ``scores.json``: the same bytes for the same scores."""
    return json.dumps(scorecard_to_json(card), indent=2, allow_nan=False) + "\n"


def write_further_scores(folder: Path, card: Scorecard, seeds: int) -> Path:
    """Write ``scores-<split>-<seeds>.json`` beside ``scores.json``; nothing is overwritten.

    Returns:
        The file, ``scores-<split>-<seeds>.2.json`` and so on when there was one already.
    """
    return write_beside(folder, f"scores-{card.split}-{seeds}", scores_text(card))


def write_beside(folder: Path, stem: str, text: str) -> Path:
    """Write a file into a finished run under a name that is free: ``STEM.json``, ``STEM.2.json`` and so on.

    Returns:
        The file.
    """
    path = _first_free(folder, stem)
    try:
        _write(path, text)
    except RecordError:
        path.unlink(missing_ok=True)  # only the name was taken
        raise
    return path


def _first_free(folder: Path, stem: str) -> Path:
    """Take a name with an empty file: two processes that measure at the same time never get the same one."""
    count = 1
    while True:
        path = folder / (f"{stem}.json" if count == 1 else f"{stem}.{count}.json")
        with run_folder.writing(path):
            try:
                path.open("x").close()
            except FileExistsError:
                count += 1
                continue
        return path


def read_record(folder: Path) -> RunRecord:
    """Return what lies in a run folder, complete or not; needs neither plugins nor torch.

    Raises:
        RecordError: there is no run (``VU-R052``), or a file cannot be read (``VU-R056``).
    """
    if run_folder.state_of(folder) in ("absent", "empty", "foreign"):
        raise run_folder.no_run(folder)
    config = _read_toml(folder / RUN)
    environment = run_folder.read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else {}
    events = run_folder.read_events(folder)
    edit = folder / EDIT
    facts = _edit_facts(edit) if edit.exists() else {}
    concepts = environment.get("concepts") or ()
    said = config.get("data", {})
    return RunRecord(
        folder=folder,
        run_id=str(environment.get("run_id", "")),
        method=str(config.get("unlearner", {}).get("method", "")),
        model=_named(config.get("model", {})),
        data=_named(said),
        forget=tuple(concept["forget"] for concept in concepts) or tuple(said.get("forget", ())),
        overwrite=tuple(concept["overwrite"] for concept in concepts if concept["overwrite"]),
        scorecard=_read_scores(folder / SCORES) if (folder / SCORES).exists() else None,
        edit_bytes=edit.stat().st_size if edit.exists() else 0,
        edit_facts=facts,
        seconds=seconds_per_stage(events),
        environment=environment,
        files={name: what for name, what in FILES.items() if (folder / name).exists()},
        notes=_texts(events, "note"),
        warnings=_texts(events, "warning"),
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise run_folder.unreadable(path, str(error)) from error
    for name in ("model", "data", "unlearner"):
        if not isinstance(config.get(name, {}), dict):
            raise run_folder.unreadable(path, f"{name} is no table")
    return config


def _read_scores(path: Path) -> Scorecard:
    value = run_folder.read_json(path)
    if value.get("format") != SCORES_FORMAT:
        raise run_folder.unreadable(path, f"its format is {value.get('format')!r}, and this vu reads {SCORES_FORMAT}")
    try:
        return scorecard_from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise run_folder.unreadable(path, f"it holds no scores ({error})") from error


def _edit_facts(path: Path) -> dict[str, Any]:
    """Read the facts of an edit from the head of its file, without its tensors."""
    try:
        return dict(json.loads(read_header(path)["__metadata__"]["vu"])["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise run_folder.unreadable(path, "its head is damaged") from error


def _named(table: Mapping[str, Any]) -> str:
    name, ref = str(table.get("name", "")), str(table.get("ref", ""))
    return f"{name}={ref}" if ref else name


def _texts(events: Iterable[Mapping[str, Any]], kind: str) -> tuple[str, ...]:
    texts = [str(event["values"].get("text", "")) for event in events if event.get("type") == kind]
    return tuple(dict.fromkeys(text for text in texts if text))


def seconds_per_stage(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the wall time of each stage over all sittings; a stage that was killed counts up to its last event."""
    seconds: dict[str, float] = {}
    running, started, last = "", 0.0, 0.0
    for event in events:
        now = datetime.fromisoformat(str(event["time"])).timestamp()
        state = event["values"].get("state") if event["type"] == "stage" else None
        sitting_ends = event["type"] == "resume" and event["stage"] == "run"
        if running and (state == "begin" or sitting_ends):
            seconds[running] = seconds.get(running, 0.0) + last - started
            running = ""
        if state == "begin":
            running, started = str(event["stage"]), now
        elif state == "end":
            name = str(event["stage"])
            seconds[name] = seconds.get(name, 0.0) + float(event["values"]["seconds"])
            running = ""
        last = now
    return {name: round(value, 3) for name, value in seconds.items()}


def _write_images(folder: Path, samples: Samples) -> tuple[tuple[str, bytes, bytes], ...]:
    """Write one PNG per image; return (caption, PNG before, PNG after) for the report."""
    rows = []
    for index, item in enumerate(samples.items):
        before, after = png(samples.before[index]), png(samples.after[index])
        _write(folder / IMAGES / f"{index}-before.png", before)
        _write(folder / IMAGES / f"{index}-after.png", after)
        rows.append((f"{item.prompt} (seed {item.seed})", before, after))
    return tuple(rows)


def png(image: np.ndarray[Any, Any]) -> bytes:
    """Return a uint8 image ``(H, W, 3)`` as the bytes of a PNG file."""
    import struct
    import zlib

    height, width = image.shape[:2]
    rows = b"".join(b"\0" + image[y].tobytes() for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB, no interlacing
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
