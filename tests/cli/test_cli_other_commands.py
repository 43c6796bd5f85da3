"""measure, generate, compare, describe, explain, cache."""

import json
import tomllib
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from vu_cli import explain
from vu_core import ConfigError, Edit, Event, PluginError, Source, hookimpl, pipeline, setting
from vu_core.plugins import discover

ROOT = Path(__file__).resolve().parents[2]


# measure


def test_measure_hands_settings_on_and_prints_the_scorecard(vu, monkeypatch, scorecard):
    seen = {}

    def measure_run(folder, *, plugins, overrides, on_event):
        seen.update(folder=folder, overrides=[(each.key, each.value, each.origin) for each in overrides])
        for _ in range(2):
            on_event(Event("warning", "load", {"text": "The data has changed."}))
        on_event(Event("written", "record", {"file": "scores-validation-10.json"}))
        return scorecard

    monkeypatch.setattr(pipeline, "measure_run", measure_run)
    done = vu("measure", "runs/x", "--seeds", "10", "--split", "validation", "--set", "measure.samples=0", "--json")
    assert done.status == 0
    document = json.loads(done.out)
    assert document["scores"][0]["name"] == "ua"
    assert document["files"] == [str(Path("runs/x/scores-validation-10.json"))]
    assert document["warnings"] == ["The data has changed."]
    quiet = vu("measure", "runs/x", "--quiet")
    assert quiet.err == ""
    assert "warning: The data has changed." in quiet.out
    assert str(Path("runs/x/scores-validation-10.json")) in quiet.out
    seen.clear()
    flags = ("--seeds", "10", "--split", "validation", "--reference", "runs/y")
    vu("measure", "runs/x", *flags, "--set", "measure.samples=0")
    assert seen["folder"] == Path("runs/x")
    assert seen["overrides"] == [
        ("measure.samples", 0, "--set"),
        ("measure.seeds", 10, "--seeds"),
        ("measure.split", "validation", "--split"),
        ("measure.reference", "runs/y", "--reference"),
    ]


def test_measuring_a_folder_that_holds_no_run_is_refused(vu, tmp_path):
    done = vu("measure", tmp_path)
    assert done.status == 7
    assert "VU-R052" in done.err


# generate


@pytest.fixture
def painted(monkeypatch):
    """A run whose untouched model paints in dark grey, and under its edit in light grey."""
    import numpy as np

    from vu_core import workbench

    class Bench:
        edit = Edit({})
        model = SimpleNamespace(network=None)

        def __init__(self, emit):
            self.emit = emit

        def generate(self, prompt, seed, edit):
            return np.full((64, 64, 3), 40 if edit is None else 200, dtype=np.uint8)

    @contextmanager
    def opened(_folder, _host, on_event):
        on_event(Event("warning", "load", {"text": "The data has changed."}))
        yield Bench(on_event)

    monkeypatch.setattr(workbench, "opened", opened)


def test_warnings_of_generate_are_part_of_its_result(vu, painted, tmp_path):
    done = vu("generate", "runs/x", "A star.", "--out", tmp_path / "star.png", "--quiet")
    assert (done.out.splitlines()[1], done.err) == ("warning: The data has changed.", "")
    done = vu("generate", "runs/x", "A star.", "--out", tmp_path / "star.png", "--json")
    assert json.loads(done.out)["warnings"] == ["The data has changed."]


def test_generate_writes_both_images_pixel_for_pixel_side_by_side(vu, painted, tmp_path):
    from PIL import Image

    out = tmp_path / "star.png"
    done = vu("generate", "runs/x", "A star.", "--seed", "7", "--out", out)
    assert done.status == 0, done.err
    assert str(out) in done.out
    with Image.open(out) as image:
        assert image.size == (64 + 8 + 64, 64 + 14)
        assert image.getpixel((0, 20)) == image.getpixel((63, 77)) == (40, 40, 40)
        assert image.getpixel((72, 20)) == image.getpixel((135, 77)) == (200, 200, 200)
        assert image.getpixel((68, 40)) == (255, 255, 255)
        assert image.text == {"prompt": "A star.", "seed": "7"}
    assert [path.name for path in tmp_path.iterdir()] == ["star.png"]


def test_generate_picks_a_free_name_when_none_is_given(vu, painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [json.loads(vu("generate", "runs/x", "A star.", "--json").out)["file"] for _ in range(2)]
    assert names == ["x-seed0.png", "x-seed0.2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_generate_refuses_a_bad_target_before_anything_heavy(vu, monkeypatch, tmp_path):
    monkeypatch.setattr("vu_core.workbench.opened", lambda *_args: pytest.fail("too late"))
    for out in (tmp_path, tmp_path / "absent" / "star.png"):
        done = vu("generate", "runs/x", "A star.", "--out", out)
        assert done.status == 7
        assert "VU-R120" in done.err


# compare


@pytest.fixture
def two_runs(monkeypatch, record, scorecard, tmp_path):
    other = [attrs.evolve(score, after=0.5) if score.name == "ua" else score for score in scorecard.scores]
    other[1] = attrs.evolve(other[1], fingerprint="another way")
    records = {
        "one": attrs.evolve(record, folder=tmp_path / "one"),
        "two": attrs.evolve(
            record,
            folder=tmp_path / "two",
            scorecard=attrs.evolve(scorecard, scores=tuple(other), status="not_forgotten", reasons=("ua is 50.0 %.",)),
        ),
    }
    for name, rate in (("one", 0.001), ("two", 0.003)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.toml").write_text(f"[run]\nseed = 1\n[unlearner.training]\nlr = {rate}\n")
    monkeypatch.setattr(pipeline, "read_record", lambda folder: records[folder.name])
    return tmp_path / "one", tmp_path / "two"


def test_compare_shows_scores_and_differences_side_by_side(vu, two_runs):
    done = vu("compare", *two_runs)
    assert done.status == 0, done.err
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "ua % 97.0 (+96.0) 50.0 (+49.0)" in lines
    assert "unlearner.training.lr 0.001 0.003" in lines
    assert not any(line.startswith("run.seed") for line in lines)
    assert "note: two: not forgotten. ua is 50.0 %." in lines


def test_numbers_of_different_definition_never_share_a_row(vu, two_runs):
    rows = json.loads(vu("compare", *two_runs, "--json").out)["rows"]
    ira = [row for row in rows if row["name"] == "ira"]
    assert [[score is not None for score in row["scores"]] for row in ira] == [[True, False], [False, True]]
    assert [row["name"] for row in rows] == ["ua", "ira", "ira", "edit_bytes", "changed_parameters"]
    assert "ira was measured in different ways" in vu("compare", *two_runs).out


def test_a_run_beside_itself_is_told(vu, two_runs):
    one, two = two_runs
    assert "named 2 times" in " ".join(vu("compare", one, one).out.split())
    assert "named" not in vu("compare", one, two).out


def test_compare_needs_two_runs_with_their_configuration(vu, two_runs):
    assert vu("compare", two_runs[0]).status == 2
    (two_runs[1] / "run.toml").write_text("no toml")
    done = vu("compare", *two_runs)
    assert done.status == 7
    assert "VU-R121" in done.err


# describe


@attrs.frozen
class StripesConfig:
    needed: int = setting(help="has no default")
    width: float = setting(0.5, help="width of a stripe", gt=0)
    colours: tuple[str, ...] = setting(("black", "white"), help="in this order")
    batch: int = setting(4, help="stripes at once", ge=1, speed_only=True)


class Stripes:
    """Paint stripes.

    Each stripe has
    the same width::

        w_1 = width
        w_2 = width

    Args:
        config: not for users.

    Deviates:
        Never.
    """

    Config = StripesConfig
    source = Source("Stripes, Zebra 1999", "https://example.org/stripes", "paper")
    defaults = {}

    def __init__(self, config):
        self.config = config

    def unlearn(self, model, data, run):
        return Edit({})


@pytest.fixture
def stripes(monkeypatch):
    import sys
    import types

    module = types.ModuleType("stripes_of_the_tests")
    module.Stripes = Stripes

    class Plugin:
        @hookimpl
        def vu_register_unlearners(self, register):
            target = "stripes_of_the_tests:Stripes"
            register("stripes", target, summary="paints stripes", aliases=("bars",), needs=("generate|classify",))

    monkeypatch.setitem(sys.modules, "stripes_of_the_tests", module)
    return discover(extra=[("zebras", "1.2", Plugin())], installed=False)


def test_describe_shows_text_paper_and_every_setting(vu, stripes):
    done = vu("describe", "bars", plugins=stripes)
    assert done.status == 0, done.err
    for fragment in (
        "stripes  unlearner",
        "Each stripe has the same width:\n",
        "  w_1 = width\n",
        "Deviates: Never.",
        "Stripes, Zebra 1999",
        "https://example.org/stripes",
        "zebras 1.2",
        "needs       generate or classify",
        "unlearner.width = 0.5",
        "> 0",
        'unlearner.colours = ["black", "white"]',
        "changes time or memory only",
        "unlearner.needed = (required)",
        "default of stripes",
    ):
        assert fragment in done.out
    assert "not for users" not in done.out
    block = done.out.split("For a configuration file:")[1]
    assert tomllib.loads(block)["unlearner"] == {
        "method": "stripes",
        "width": 0.5,
        "colours": ["black", "white"],
        "batch": 4,
    }


def test_the_block_can_be_pasted_whatever_the_width(vu, stripes, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    block = vu("describe", "stripes", plugins=stripes).out.split("For a configuration file:")[1]
    assert tomllib.loads(block)["unlearner"]["colours"] == ["black", "white"]


def test_describe_in_json_and_its_errors(vu, stripes):
    (description,) = json.loads(vu("describe", "stripes", "--json", plugins=stripes).out)
    assert {each["key"]: each["default"] for each in description["parameters"]}["unlearner.width"] == 0.5
    assert description["entry"]["aliases"] == ["bars"]
    assert vu("describe", "strips", plugins=stripes).status == PluginError.exit_status
    assert "pip install vu-fade" in vu("describe", "vu-fade", plugins=stripes).err
    done = vu("describe", "stripes", "--kind", "unlerner", plugins=stripes)
    assert done.status == ConfigError.exit_status
    assert "'unlearner'" in done.err


# explain


def test_every_page_can_be_explained(vu):
    for code in explain.known_codes():
        done = vu("explain", code)
        assert done.status == 0
        assert done.out.startswith(f"{code}: ")
        assert "```" not in done.out
    assert explain.known_codes() == tuple(sorted(page.stem for page in (ROOT / "docs/errors").glob("VU-*.md")))


def test_codes_may_be_shortened_and_misspelt_ones_get_near_misses(vu):
    full = vu("explain", "VU-C121").out
    assert vu("explain", "c121").out == full
    document = json.loads(vu("explain", "vu-c121", "--json").out)
    assert (document["code"], document["title"]) == ("VU-C121", "Unknown command")
    assert "VU-C121" in vu("explain", "C12").err


def test_paragraphs_of_a_page_are_lines_that_the_terminal_breaks(vu, monkeypatch):
    from vu_cli.explain import _plain

    page = "# VU-X001: A title\n\nOne\ntwo.\n\n```text\na\n b\n```\n\n- first\n  goes on\n- second\n| a |\n| b |\n"
    assert _plain(page).splitlines() == [
        "VU-X001: A title",
        "",
        "One two.",
        "",
        "    a",
        "     b",
        "",
        "- first goes on",
        "- second",
        "| a |",
        "| b |",
    ]
    monkeypatch.setenv("COLUMNS", "40")
    lines = vu("explain", "VU-C120").out.splitlines()
    first = lines[2 : lines.index("", 2)]
    assert all(len(line) + 1 + len(follows.split()[0]) > 40 for line, follows in pairwise(first))


@pytest.mark.parametrize("begins", ["3.5 GB are enough", "**All** of them", "*some* of them", "-1 is wrong", "#7 is"])
def test_a_line_that_only_looks_like_an_item_goes_on_with_the_paragraph(begins):
    from vu_cli.explain import _plain

    assert _plain(f"# VU-X001: A title\n\nOne two\n{begins}\n").splitlines()[2:] == [f"One two {begins}"]


@pytest.mark.parametrize("begins", ["- first", "* first", "12. first", "| a |", "|---|"])
def test_an_item_and_a_row_begin_a_line(begins):
    from vu_cli.explain import _plain

    assert _plain(f"# VU-X001: A title\n\nOne two\n{begins}\n").splitlines()[2:] == ["One two", begins]


def test_the_index_of_errors_is_complete():
    index = (ROOT / "docs/errors/README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs/errors").glob("VU-*.md")):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix(f"# {page.stem}: ")
        assert f"| [{page.stem}]({page.name}) | {title} |" in index


# cache


def test_the_cache_can_be_listed_and_cleared(vu, monkeypatch, tmp_path):
    from vu_core.cache import Cache

    monkeypatch.setenv("VU_CACHE", str(tmp_path))
    cache = Cache(tmp_path)
    cache.put_json("before", "a", [1], about="unlearncanvas, 100 items")
    cache.put_json("other", "b", [2], about="something else")
    rows = json.loads(vu("cache", "list", "--json").out)["rows"]
    assert {row["about"] for row in rows} == {"unlearncanvas, 100 items", "something else"}
    assert "unlearncanvas, 100 items" in vu("cache", "list", "--kind", "before").out
    assert "something else" not in vu("cache", "list", "--kind", "before").out

    assert json.loads(vu("cache", "clear", "--kind", "before", "--json").out)["files"] == 1
    assert cache.get_json("other", "b") == [2]
    assert "Deleted 1 files" in vu("cache", "clear").out
    assert cache.entries() == ()


def test_the_cache_alone_is_listed_and_must_be_a_folder(vu, monkeypatch, tmp_path):
    from vu_core.cache import Cache

    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    assert vu("cache").status == 0  # there is none yet
    Cache(tmp_path / "cache").put_json("before", "a", [1], about="unlearncanvas, 100 items")
    assert vu("cache").out == vu("cache", "list").out
    assert json.loads(vu("cache", "--json").out) == json.loads(vu("cache", "list", "--json").out)

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "file"))
    for line in (["cache"], ["cache", "list"], ["cache", "clear"]):
        done = vu(*line)
        assert (done.status, done.out) == (7, "")
        assert "VU-R123" in done.err
