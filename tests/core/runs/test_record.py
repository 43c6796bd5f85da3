"""What a run leaves behind: records, report, model card."""

import json
import re
import struct
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vu_core import Event, RecordError, Run, Score, Scorecard
from vu_core.atomic import write_bytes
from vu_core.config import Override, RawConfig
from vu_core.pipeline import execute, read_record
from vu_core.plugins import Plugins
from vu_core.report import claim, value_text
from vu_core.run_folder import EventLog, read_events, remove_if_nothing_was_won, state_of
from vu_core.score import scorecard_from_json, scorecard_to_json
from vu_core.stages.read import read
from vu_core.stages.record import png, seconds_per_stage

Raw = Callable[..., RawConfig]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Outline(HTMLParser):
    """Collects tags and links, and objects to tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def test_the_record_is_read_back_without_plugins(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    assert read_record(record.folder) == record


def test_reading_a_record_needs_no_torch(plugins: Plugins, raw: Raw, process: Any) -> None:
    record = execute(raw(), plugins=plugins)
    code = """
import sys
from pathlib import Path
from vu_core.pipeline import read_record
heavy = [name for name in ("torch", "numpy", "safetensors") if name in sys.modules]
print(read_record(Path(sys.argv[1])).run_id, *heavy)
"""
    done = process(code, str(record.folder))
    assert done.stdout.split() == [record.run_id], done.stderr


def test_scores_are_fractions_and_round_trip() -> None:
    score = Score("ua", 0.97, "fraction", "up", 100, 0.02, 0.91, 0.99, (10_000, 10_001), "abc", "help", 0.9, 1.0)
    card = Scorecard("held-out", "not_forgotten", (score,), ("A doubt.",))
    value = json.loads(json.dumps(scorecard_to_json(card)))
    assert value["format"] == 1
    assert value["scores"][0]["change"] == pytest.approx(0.95)
    assert scorecard_from_json(value) == card


def test_the_report_is_whole_and_needs_nothing_else(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    html = (record.folder / "report.html").read_text()
    page = outline(html)
    assert "script" not in page.tags
    assert len(page.links) == 2 * 4
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in html.replace('xmlns="http://www.w3.org', "")
    text = " ".join(page.text)
    for expected in (
        "toy-net without sign:plus",
        "forget_size",
        "seeds 10000 to 10001",
        "unlearner.training.lr",
        "--set",
    ):
        assert expected in text
    assert str(record.folder.resolve()) not in html
    assert "$" not in re.sub(r"base64,[^\"]*", "", html)


def test_the_report_does_not_tell_where_things_lie(plugins: Plugins, raw: Raw, place: Path) -> None:
    (place / "my data").mkdir()
    overrides = [Override("run.out", str(place / "kept"), "--out"), Override("run.seed", 3, f"{place / 'own.toml'}:3")]
    overrides += [Override("unlearner.method", "toy-push", "--set"), Override("data.forget", ("sign:plus",), "--set")]
    record = execute(read(None, [*overrides, Override("data.ref", "my data", "--set")]), plugins=plugins)
    assert str(place) in (record.folder / "run.toml").read_text()
    html = (record.folder / "report.html").read_text()
    assert str(place) not in html
    assert ".../my data" in html
    assert "own.toml:3" in html
    assert str(place) not in (record.folder / "README.md").read_text()


def test_text_of_users_cannot_break_the_report(plugins: Plugins, raw: Raw, toys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(toys.AXES, "sign", ("<script>alert(1)</script>&$x", "plus"))
    record = execute(raw(data__forget=("sign:<script>alert(1)</script>&$x",)), plugins=plugins)
    assert "script" not in outline((record.folder / "report.html").read_text()).tags


def test_plugins_add_sections_to_the_report(plugins: Plugins, raw: Raw, toys: Any, monkeypatch: Any) -> None:
    unlearn = toys.Push.unlearn

    def with_sections(self: Any, model: Any, data: Any, run: Run) -> Any:
        run.report.add("Layers", "<p>old</p>")
        run.report.add("Layers", "<p>which layers moved</p>")
        return unlearn(self, model, data, run)

    monkeypatch.setattr(toys.Push, "unlearn", with_sections)
    html = (execute(raw(), plugins=plugins).folder / "report.html").read_text()
    assert html.count("<h2>Layers</h2>") == 1
    assert "which layers moved" in html
    assert "<p>old</p>" not in html


def test_the_model_card_says_what_it_is_and_what_it_is_not(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    card = (record.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vu\n")
    assert 'license: "apache-2.0"' in card
    assert "| forget_size |" in card
    assert "held-out split. vu lets no method see these seeds." in card
    assert record.environment["base_hash"][:12] in card
    assert "- `report.html`: " in card
    assert "## Limits" in card
    assert "$" not in card


def test_environment_names_versions_and_size_but_no_machine(plugins: Plugins, raw: Raw, place: Path) -> None:
    import platform

    record = execute(raw(), plugins=plugins)
    text = (record.folder / "environment.json").read_text()
    value = json.loads(text)
    assert {"threads", "cores", "memory_gib", "torch", "python", "versions", "base_hash", "run_id"} <= set(value)
    assert value["versions"]["vu-toy-run"] == "1.0"
    assert platform.node() not in text
    assert str(Path.home()) not in text


def test_the_claim_is_one_sentence_with_the_first_score(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    text = claim(record)
    assert text.startswith("The method toy-push was to make toy-net forget sign:plus and show sign:minus in its place")
    assert text.endswith("(n = 2).")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5, "fraction", "50.0 %"),
        (None, "fraction", ""),
        (3 * 10**6, "bytes", "3.0 MB"),
        (999_950, "bytes", "1.0 MB"),
        (12, "bytes", "12 B"),
        (1234567.0, "parameters", "1,234,567"),
        (0.00012345, "mse", "0.0001234"),
    ],
)
def test_numbers_as_the_reader_expects_them(value: float | None, unit: str, text: str) -> None:
    assert value_text(value, unit) == text


def test_images_are_real_pngs(plugins: Plugins, raw: Raw) -> None:
    from PIL import Image

    record = execute(raw(), plugins=plugins)
    names = sorted(path.name for path in (record.folder / "images").iterdir())
    assert names == sorted(f"{i}-{side}.png" for i in range(4) for side in ("before", "after"))
    with Image.open(record.folder / "images" / "0-after.png") as image:
        assert (image.size, image.mode) == ((8, 8), "RGB")


def test_a_png_holds_the_pixels_exactly(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(png(pixels))
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
    data = png(pixels)
    length = struct.unpack(">I", data[8:12])[0]
    assert struct.unpack(">I", data[16 + length : 20 + length])[0] == zlib.crc32(data[12 : 16 + length])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.toml", "[run\n"),
        ("run.toml", "unlearner = 3\n"),
        ("scores.json", "{"),
        ("scores.json", "[]"),
        ("scores.json", '{"scores": [{"name": "a"}]}'),
        ("scores.json", '{"format": 1, "scores": [{"name": "a"}]}'),
        ("scores.json", '{"format": 2, "split": "held-out", "status": "ok", "scores": []}'),
        ("scores.json", '{"split": "held-out", "status": "ok", "scores": []}'),
        ("environment.json", "no"),
        ("edit.safetensors", "no"),
        ("events.jsonl", "no\n{}\n"),
        ("events.jsonl", "{}\n"),
        ("events.jsonl", "[]\n"),
        ("events.jsonl", '{"time": "today", "type": "note", "stage": "run", "values": {}}\n'),
        ("events.jsonl", '{"time": "2026-01-01T00:00:00+00:00", "type": "note", "stage": "run", "values": 3}\n'),
    ],
)
def test_a_damaged_file_is_named(plugins: Plugins, raw: Raw, name: str, damage: str) -> None:
    folder = execute(raw(), plugins=plugins).folder
    (folder / name).write_text(damage)
    with pytest.raises(RecordError, match=name) as caught:
        read_record(folder)
    assert caught.value.code == "VU-R056"


def test_what_is_no_run_is_not_read(place: Path) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(place)
    assert caught.value.code == "VU-R052"


def test_a_folder_that_cannot_be_looked_into_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RecordError, match="Permission denied") as caught:
        read_record(place)
    assert caught.value.code == "VU-R056"


def test_an_unfinished_run_is_read_as_far_as_it_came(place: Path) -> None:
    (place / "run.toml").write_text(
        '[unlearner]\nmethod = "fade"\n[model]\nname = "m"\nref = "r"\n[data]\nforget = ["a"]\n'
    )
    record = read_record(place)
    assert (record.method, record.model, record.forget, record.scorecard) == ("fade", "m=r", ("a",), None)
    assert state_of(place) == "incomplete"


def test_events_hold_json_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    values = {
        "nan": float("nan"),
        "inf": float("inf"),
        "path": tmp_path,
        "tuple": (1, 2.5),
        "none": None,
        "nested": {1: {2}},
    }
    log.append(Event("note", "unlearn", values))
    read = read_events(tmp_path)[0]["values"]
    assert read == {
        "nan": "nan",
        "inf": "inf",
        "path": str(tmp_path),
        "tuple": [1, 2.5],
        "none": None,
        "nested": {"1": [2]},
    }


def test_a_torn_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append(Event("note", "load"))
    with path.open("ab") as file:
        file.write(b'{"time": "2026')
    assert len(read_events(tmp_path)) == 1
    EventLog(path).append(Event("note", "measure"))
    assert [event["stage"] for event in read_events(tmp_path)] == ["load", "measure"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_is_a_record_error(
    plugins: Plugins, raw: Raw, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("vu_core.stages.record.write_bytes", full)
    with pytest.raises(RecordError, match=r"environment\.json' cannot be written: No space left") as caught:
        execute(raw(), plugins=plugins)
    assert caught.value.code == "VU-R055"
    assert not list((place / "runs").iterdir())


@pytest.mark.parametrize("name", ["scores.json", "report.html", "README.md", "0-before.png"])
def test_a_file_that_cannot_be_written_is_named(
    plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        write_bytes(path, data)

    monkeypatch.setattr("vu_core.stages.record.write_bytes", refuse)
    with pytest.raises(RecordError, match=f"{name}' cannot be written") as caught:
        execute(raw(), plugins=plugins)
    assert caught.value.code == "VU-R055"


def test_a_folder_with_something_to_go_on_from_is_kept(tmp_path: Path) -> None:
    for name in ("checkpoints/main-1.json", "edit.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
        assert not remove_if_nothing_was_won(folder)
        assert (folder / name).exists()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "run.toml").write_text("x")
    assert remove_if_nothing_was_won(tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_time_of_a_killed_stage_counts_up_to_its_last_event() -> None:
    def at(second: int, type: str, stage: str, **values: Any) -> dict[str, Any]:
        return {"time": f"2026-01-01T00:00:{second:02d}+00:00", "type": type, "stage": stage, "values": values}

    events = [
        at(0, "stage", "unlearn", state="begin"),
        at(7, "checkpoint", "unlearn"),
        at(30, "resume", "run"),
        at(30, "stage", "unlearn", state="begin"),
        at(33, "stage", "unlearn", state="end", seconds=3.0),
    ]
    assert seconds_per_stage(events) == {"unlearn": 10.0}
