"""The conflict of gradients in a run: read, summarised, drawn and recorded."""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any
from xml.etree import ElementTree

import pytest

from vu_core import Event, RecordError
from vu_core.config import RawConfig
from vu_core.conflict import COSINES, Conflict, Spread, Step, read_conflict
from vu_core.conflict_section import NAMES, conflict_section
from vu_core.pipeline import Interrupted, execute, read_record, resume
from vu_core.plugins import Plugins
from vu_core.run_folder import EventLog

Raw = Callable[..., RawConfig]


def told(number: int, c: float | None, *flags: str, **changes: Any) -> Event:
    cosines = {"cos_rf": c, "cos_g_r": 0.5, "cos_g_f": 0.25}
    values = {"phase": "main", "step": number, "flags": list(flags), **cosines, **changes}
    return Event("gradient_conflict", "unlearn", values)


def written(folder: Path, *events: Event) -> Path:
    log = EventLog(folder / "events.jsonl")
    for event in events:
        log.append(event)
    return folder


def steps(*cosines: float | None, phase: str = "main") -> tuple[Step, ...]:
    return tuple(Step(phase, n, {"cos_rf": c, "cos_g_r": 0.5, "cos_g_f": None}) for n, c in enumerate(cosines, start=1))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_without_events_nothing_is_known(tmp_path: Path) -> None:
    assert read_conflict(tmp_path) is None
    assert read_conflict(written(tmp_path, Event("note", "plan", {"text": "x"}))) is None


def test_of_a_step_that_was_repeated_the_last_time_counts(tmp_path: Path) -> None:
    again = Event("resume", "run", {"from": "unlearn"})
    events = [told(1, 0.1), told(2, -0.2, "a"), told(3, 0.3), again, told(2, 0.4), told(3, -0.5, "b"), told(4, 0.6)]
    found = read_conflict(written(tmp_path, *events))
    assert found is not None
    assert [(step.number, step.cosines["cos_rf"]) for step in found.steps] == [(1, 0.1), (2, 0.4), (3, -0.5), (4, 0.6)]
    assert found.flags == {"b": 1}


def test_equal_steps_of_two_phases_are_two(tmp_path: Path) -> None:
    first, second = {"phase": "second"}, {"phase": "first"}
    events = [told(1, 0.1, **first), told(2, 0.2, **first), told(1, -0.3, **second), told(2, -0.4, **second)]
    found = read_conflict(written(tmp_path, *events))
    assert found is not None
    assert found.phases == (("second", 2), ("first", 2)), "in the order in which they began"
    assert [step.cosines["cos_rf"] for step in found.steps] == [0.1, 0.2, -0.3, -0.4]


@pytest.mark.parametrize(
    "changes",
    [
        {"cos_rf": "nan"},
        {"cos_g_f": 1.5},
        {"cos_g_r": True},
        {"step": "1"},
        {"step": None},
        {"phase": 3},
        {"flags": None},
        {"flags": [1]},
    ],
)
def test_a_damaged_event_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError) as caught:
        read_conflict(written(tmp_path, told(1, 0.5), told(2, 0.5, **changes)))
    assert caught.value.code == "VU-R056"
    assert "events.jsonl" in caught.value.where


def test_an_event_without_a_cosine_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        read_conflict(written(tmp_path, Event("gradient_conflict", "unlearn", {"phase": "a", "step": 1, "flags": []})))


# ---- the summary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 19, 500])
def test_the_numbers_are_those_of_a_plain_computation(n: int) -> None:
    import numpy as np

    draw = random.Random(n)
    known = [draw.uniform(-1, 1) for _ in range(n)]
    spread = Spread.of([*known, None, None])
    assert (spread.defined, spread.undefined) == (n, 2)
    assert spread.negative == sum(c < 0 for c in known) / n
    assert spread.mean == pytest.approx(fmean(known))
    assert spread.median == pytest.approx(median(known))
    assert [spread.low, spread.high] == pytest.approx(list(np.percentile(known, [5, 95])))
    assert list(spread.histogram) == list(np.histogram(known, bins=50, range=(-1, 1))[0])


def test_the_edges_of_the_bins_belong_to_the_right_one() -> None:
    def place(c: float) -> int:
        return Spread.of([c]).histogram.index(1)

    assert [place(c) for c in (-1.0, -0.5, 0.0, 0.5, 0.98, 1.0)] == [0, 12, 25, 37, 49, 49]
    assert place(-1e-18) == 24, "as negative as the share below 0 says"
    assert place(math.nextafter(1.0, 0.0)) == 49


def test_nothing_defined_is_no_number() -> None:
    spread = Spread.of([None, None])
    assert (spread.defined, spread.undefined, sum(spread.histogram)) == (0, 2, 0)
    assert (spread.negative, spread.mean, spread.median, spread.low, spread.high) == (None,) * 5
    assert "cannot be compared" in Conflict(steps(None)).sentence


def test_zero_is_no_conflict() -> None:
    assert Spread.of([0.0, -0.0, -1e-9, 0.1]).negative == 0.25


def test_the_file_is_strict_json_and_its_counts_add_up(tmp_path: Path) -> None:
    found = Conflict((*steps(None, -0.5, 0.25, 1.0), *steps(None, -1.0, phase="second")))
    found.write(tmp_path)
    value = json.loads((tmp_path / "gradient-conflict.json").read_text(), parse_constant=pytest.fail)
    assert (value["format"], value["steps"]) == (1, 6)
    assert value["phases"] == [{"name": "main", "steps": 4}, {"name": "second", "steps": 2}]
    assert set(value["cosines"]) == set(COSINES)
    for spread in value["cosines"].values():
        assert len(spread["histogram"]) == 50
        assert sum(spread["histogram"]) == spread["defined"] == 6 - spread["undefined"]
    assert value["cosines"]["cos_rf"]["negative"] == 0.5
    assert value["cosines"]["cos_g_f"]["mean"] is None


# ---- the section ----------------------------------------------------------------------------------------------------


def drawings(found: Conflict) -> list[ElementTree.Element]:
    """Return the drawings of the section; they are well-formed, and nothing in them runs or is fetched."""
    html = conflict_section(found).html
    assert not re.search(r"<script|href|src=|http|\son\w+=|nan|inf\b|\$", html)
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S)]


def test_the_section_draws_a_histogram_and_a_curve_per_cosine() -> None:
    histograms, curves = drawings(Conflict(steps(-0.5, -0.5, 0.25, 1.0)))
    for drawing in (histograms, curves):
        words = ["".join(text.itertext()) for text in drawing.iter("text")]
        assert [word for word in words if word in NAMES.values()] == list(NAMES.values())
        assert words.count("cosine") == 3, "every panel has its axes labelled"
    bars = [bar for bar in histograms.iter("rect") if "bad" in bar.get("fill", "")]
    assert ["".join(bar.itertext()) for bar in bars] == ["-0.52 to -0.48: 2 steps"]
    assert len(list(histograms.iter("rect"))) == 4  # 3 bins of the first cosine, 1 of the second, none of the third
    assert len(list(curves.iter("polyline"))) == 2


def test_a_bar_is_as_high_as_its_count_and_stands_on_the_axis() -> None:
    histograms, _ = drawings(Conflict(steps(-0.5, -0.5, 0.25, 1.0)))
    two, one, other = list(histograms.iter("rect"))[:3]
    assert float(two.get("height", "")) == 2 * float(one.get("height", "")) == 2 * float(other.get("height", "")) > 0
    ends = {float(bar.get("y", "")) + float(bar.get("height", "")) for bar in (two, one, other)}
    assert len(ends) == 1
    assert float(two.get("x", "")) < float(one.get("x", "")) < float(other.get("x", ""))


def test_the_curve_rises_with_the_cosine_and_breaks_where_it_is_undefined() -> None:
    _, curves = drawings(Conflict(steps(-1.0, 0.0, 1.0, None, 0.5)))
    first, second = [line.get("points", "").split() for line in curves.iter("polyline")][:2]
    points = [tuple(map(float, point.split(","))) for point in first]
    (x0, low), (x1, middle), (x2, high), _ = points
    assert x0 < x1 < x2
    assert low - middle == middle - high > 0
    assert len(set(second)) == 1, "a single step is a dot"


def test_a_long_curve_is_drawn_from_means_and_ranges() -> None:
    cosines = [(-1) ** n * 0.5 for n in range(2000)]
    _, curves = drawings(Conflict(steps(*cosines)))
    line = next(curves.iter("polyline")).get("points", "").split()
    assert len(set(line)) <= 240
    assert len({point.split(",")[1] for point in line[:-2]}) <= 2, "each column joins as many above as below, one apart"
    path = next(curves.iter("path")).get("d", "")
    low, high = (float(word) for word in re.match(r"M[\d.]+,([\d.]+)V([\d.]+)", path).groups())  # type: ignore[union-attr]
    assert low > high
    assert "means over 9 steps" in conflict_section(Conflict(steps(*cosines))).html


def test_phases_and_flags_are_named_without_harm() -> None:
    later = Step("<b>later</b>", 1, dict.fromkeys(COSINES, 0.5), ("retain_zero", "<i>"))
    found = Conflict((*steps(0.1, 0.2, 0.3), later))
    html = conflict_section(found).html
    assert "<b>" not in html
    assert "main (3 steps), &lt;b&gt;later&lt;/b&gt; (1 step)" in html
    assert "&lt;i&gt; in 1 step, retain_zero in 1 step" in html
    dashed = [line for line in drawings(found)[1].iter("line") if line.get("stroke-dasharray")]
    assert len(dashed) == 3
    assert len({line.get("x1") for line in dashed}) == 3
    assert not [line for line in drawings(Conflict(steps(0.1)))[1].iter("line") if line.get("stroke-dasharray")]


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_that_knows_the_conflict_records_it(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(unlearner__training__gradient_conflict=True), plugins=plugins)
    found = read_conflict(record.folder)
    assert found is not None
    assert found.phases == (("main", 12),)
    assert found.steps[0].cosines["cos_rf"] is None, "an untouched adapter keeps everything, so nothing is to be done"
    html = (record.folder / "report.html").read_text()
    assert html.count("<h2>Gradient conflict</h2>") == 1
    assert conflict_section(found).html in html
    assert json.loads((record.folder / "gradient-conflict.json").read_text()) == json.loads(json.dumps(found.as_json()))
    assert found.sentence in record.notes
    card = (record.folder / "README.md").read_text()
    assert f"\n\n{found.sentence}\n\n## What is in this folder" in card
    assert "- `gradient-conflict.json`: " in card
    assert "$" not in card
    assert read_record(record.folder) == record


def test_a_run_that_does_not_know_it_says_nothing(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    assert "Gradient conflict" not in (record.folder / "report.html").read_text()
    assert not (record.folder / "gradient-conflict.json").exists()
    assert not any("gradients" in note for note in record.notes)
    assert ".\n\n## What is in this folder" in (record.folder / "README.md").read_text()


@pytest.mark.parametrize("moment", ["unlearn/gradient_conflict:5", "measure/stage:begin", "record/note:None"])
def test_a_resumed_run_tells_what_an_uninterrupted_one_tells(
    plugins: Plugins, raw: Raw, place: Path, moment: str
) -> None:
    def stop(event: Event) -> None:
        if f"{event.stage}/{event.type}:{event.values.get('step', event.values.get('state'))}" == moment:
            raise KeyboardInterrupt

    whole = execute(raw(unlearner__training__gradient_conflict=True), plugins=plugins)
    with pytest.raises(Interrupted):
        execute(raw(run__out="stopped", unlearner__training__gradient_conflict=True), plugins=plugins, on_event=stop)
    record = resume(Path("stopped"), plugins=plugins)
    name = "gradient-conflict.json"
    assert (place / "stopped" / name).read_bytes() == (whole.folder / name).read_bytes()
    assert (place / "stopped" / "report.html").read_text().count("<h2>Gradient conflict</h2>") == 1
    assert [note for note in record.notes if "gradients" in note] == [
        note for note in whole.notes if "gradients" in note
    ]
