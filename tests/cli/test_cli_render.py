"""How nouns look: aligned in 80 and in 120 columns, without colour where nobody sees it, complete in JSON."""

import io
import json

import attrs
import pytest

from vu_cli import numbers
from vu_cli.comparison import Comparison, Row
from vu_cli.document import content
from vu_cli.render import console, show
from vu_cli.session import Measurement, Page, Session
from vu_core import Score, Scorecard, Table


def text(noun, monkeypatch, columns: int = 80, **settings) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    assert show(noun, Session(out=stream, err=stream, **settings)) == 0
    return stream.getvalue()


def test_the_table_of_scores(monkeypatch, scorecard):
    assert text(scorecard, monkeypatch).splitlines()[:6] == [
        "  metric              before    after  change  unit     n  95 % interval",
        "  ──────────────────────────────────────────────────────────────────────",
        "  ua                     1.0     97.0   +96.0  %      100   [91.5, 99.0]",
        "  ira                   96.1     95.2    -0.9  %      900   [94.0, 96.2]",
        "  edit_bytes                  86.0 kB                   1",
        "  changed_parameters           21,504          count    1",
    ]
    wide = text(scorecard, monkeypatch, 120)
    assert "ua   forgotten prompts answered with something else; higher is better" in wide
    assert "nothing alarming" in wide


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_column_for_the_reference_where_there_is_one(monkeypatch, scorecard, columns):
    first, *others = scorecard.scores
    beside = attrs.evolve(scorecard, scores=(attrs.evolve(first, reference=0.8125), *others))
    without, shown = (text(card, monkeypatch, columns) for card in (scorecard, beside))
    assert "reference" not in without
    assert "reference" in shown
    assert "81.2" in next(line for line in shown.splitlines() if line.strip().startswith("ua"))
    assert max(map(len, shown.splitlines())) <= columns


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal_and_no_line_ends_in_blanks(monkeypatch, columns, record, plan, scorecard):
    small = Score("forget_gap", 3.111e-05, "mse", "up", 4, 0.0, 2.9e-05, 3.3e-05)
    card = attrs.evolve(scorecard, scores=(*scorecard.scores, small))
    for noun in (attrs.evolve(record, scorecard=card), plan, card):
        lines = text(noun, monkeypatch, columns).splitlines()
        assert max(map(len, lines)) <= columns
        assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("status", "headline"),
    [("not_forgotten", "forgetting did not happen"), ("retain_collapsed", "the model lost what it should keep")],
)
def test_alarming_results_are_said_clearly(monkeypatch, scorecard, status, headline):
    shown = text(attrs.evolve(scorecard, status=status, reasons=("ua is 12.0 %.",)), monkeypatch)
    assert f"Warning: {headline}." in shown
    assert "    ua is 12.0 %." in shown
    assert "nothing alarming" not in shown


def test_the_record_says_what_was_written_where(monkeypatch, record):
    shown = text(record, monkeypatch, 120)
    assert "Run 0123456789ab  toy-method on toy-model" in shown
    assert "style:neon (overwritten by style:flat)" in shown
    assert "1 min 20 s (unlearn 29.4 s, measure 51.0 s)" in shown
    assert f"Written to {record.folder}/" in shown
    assert "edit.safetensors  the edit, 86.0 kB" in shown


def test_tables_of_plugins(monkeypatch):
    table = Table("Things", ("name", "count", "share"), (("a", 1, 0.123456), ("b [red]", None, 2.0)), ("a note",))
    assert text(table, monkeypatch).splitlines() == [
        "Things",
        "name     count   share",
        "──────────────────────",
        "a            1  0.1235",
        "b [red]              2",
        "  a note",
    ]
    assert json.loads(text(table, monkeypatch, json=True)) == {
        "title": "Things",
        "rows": [{"name": "a", "count": 1, "share": 0.123456}, {"name": "b [red]", "count": None, "share": 2.0}],
        "notes": ["a note"],
    }


def test_scorecards_in_json_are_those_of_scores_json(monkeypatch, scorecard):
    from vu_core.score import scorecard_from_json, scorecard_to_json

    document = json.loads(text(scorecard, monkeypatch, json=True))
    assert document == json.loads(json.dumps(scorecard_to_json(scorecard)))
    assert scorecard_from_json(document) == scorecard


def test_json_refuses_scores_that_are_no_numbers(scorecard):
    from vu_cli import document

    bad = attrs.evolve(scorecard.scores[0], after=float("nan"))
    with pytest.raises(ValueError):
        document.text(attrs.evolve(scorecard, scores=(bad,)))


def test_a_measurement_names_its_file_and_its_warnings(monkeypatch, scorecard):
    measured = Measurement(scorecard, ("run/scores-held-out-10.json",), ("The data has changed.",))
    shown = text(measured, monkeypatch)
    assert "written to  run/scores-held-out-10.json" in shown
    assert "warning: The data has changed." in shown
    document = json.loads(text(measured, monkeypatch, json=True))
    assert document["files"] == ["run/scores-held-out-10.json"]
    assert document["warnings"] == ["The data has changed."]
    assert document["scores"] == json.loads(text(scorecard, monkeypatch, json=True))["scores"]


@pytest.mark.parametrize("columns", [20, 30, 40, 60, 80])
def test_no_number_of_a_comparison_is_broken(monkeypatch, scorecard, columns):
    rows = tuple(Row(score.name, score.unit, score.fingerprint, (score, score)) for score in scorecard.scores)
    compared = Comparison(("one\nfade", "two\nfade"), rows, (("unlearner.training.lr", ("0.00012345", "0.003")),))
    lines = text(compared, monkeypatch, columns).splitlines()
    words = " ".join(lines)
    for number in ("97.0 (+96.0)", "95.2 (-0.9)", "21,504", "86.0 kB"):
        assert words.count(number) == 2, words
    assert max(map(len, lines)) <= max(columns, 22)


def test_several_nouns_and_pages(monkeypatch):
    page = Page("a text", {"key": "value"})
    assert text((page, page), monkeypatch) == "a text\n\na text\n"
    assert json.loads(text((page, page), monkeypatch, json=True)) == [{"key": "value"}] * 2
    with pytest.raises(TypeError, match="no way to show"):
        text(3.5, monkeypatch)


def test_colour_needs_a_terminal_and_yields_to_no_color(monkeypatch, scorecard):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for no_color, coloured in (("1", False), ("", True)):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Terminal()
        show(scorecard, Session(out=stream, err=stream))
        assert ("\x1b[32m" in stream.getvalue()) is coloured
    assert "\x1b" not in text(scorecard, monkeypatch)


def test_files_are_wide_enough_unless_columns_says_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console(io.StringIO()).width == 120
    monkeypatch.setenv("COLUMNS", "60")
    assert console(io.StringIO()).width == 60


@pytest.mark.parametrize(
    ("after", "before", "unit", "shown"),
    [
        (0.5, 0.5, "fraction", "0.0"),
        (0.4999, 0.5, "fraction", "0.0"),
        (0.4, 0.5, "fraction", "-10.0"),
        (3, 1, "images", "+2"),
        (2048, 1024, "bytes", "+1.0 kB"),
        (1.5e-5, 3e-5, "mse", "-1.5e-05"),
        (1.0, None, "fraction", ""),
    ],
)
def test_changes_have_a_sign_unless_they_vanish(after, before, unit, shown):
    assert numbers.change(Score("x", after, unit, "none", 1, before)) == shown


def test_healthy_changes_are_the_green_ones(scorecard):
    from vu_cli.render import _change_style

    up, down = Score("x", 2, "n", "up", 1, 1), Score("x", 1, "n", "down", 1, 2)
    assert _change_style(up) == _change_style(down) == "green"
    assert _change_style(attrs.evolve(up, direction="down")) == ""
    assert _change_style(attrs.evolve(up, direction="none")) == ""


def test_content_knows_every_noun(record, plan, scorecard):
    for noun in (record, plan, scorecard, Scorecard("validation", "ok", ())):
        json.dumps(content(noun), allow_nan=False)
