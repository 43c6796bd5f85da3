"""Which edit hurts which concept, computed from scorecards."""

import json
from pathlib import Path

import pytest

from vu_core import RecordError, Score, Scorecard
from vu_core.interference import Interference, Quality

BEFORE = {"ua[a]": 0.1, "ua[b]": 0.2, "ira": 0.9, "loss": 0.5}


def card(**values: float) -> Scorecard:
    """Return a scorecard; ``a`` and ``b`` are short for their unlearning accuracies."""
    after = {f"ua[{name}]" if name in "ab" else name: value for name, value in values.items()}
    units = {"loss": ("mse", "down"), "size": ("bytes", "down"), "seen": ("fraction", "none")}
    scores = []
    for name, value in after.items():
        unit, direction = units.get(name, ("fraction", "up"))
        scores.append(Score(name, value, unit, direction, 10, BEFORE.get(name)))  # type: ignore[arg-type]
    return Scorecard("held-out", "ok", tuple(scores))


def of(together: Scorecard, alone: list[Scorecard], without: list[Scorecard]) -> Interference:
    return Interference.of(together, alone, without, seeds=3, edits=[("a",), ("b",)], weights=[1.0, 0.5])


@pytest.fixture
def found() -> Interference:
    first, second = card(a=0.95, b=0.3, ira=0.85, loss=0.6), card(a=0.1, b=0.9, ira=0.88, loss=0.5)
    return of(card(a=0.9, b=0.95, ira=0.7, loss=0.75, size=8, seen=0.4), [first, second], [second, first])


def test_only_what_can_be_better_or_worse_is_compared(found: Interference) -> None:
    assert found.scores == (
        Quality("ua[a]", "fraction", "up"),
        Quality("ua[b]", "fraction", "up"),
        Quality("ira", "fraction", "up"),
        Quality("loss", "mse", "down"),
    )
    assert found.untouched == BEFORE
    assert set(found.together) == {"ua[a]", "ua[b]", "ira", "loss"}


def test_the_effect_of_an_edit_is_what_all_have_that_the_others_lack(found: Interference) -> None:
    assert found.effect(0, "ua[a]") == pytest.approx(0.8)
    assert found.effect(1, "ua[a]") == pytest.approx(-0.05)
    assert found.effect(0, "ira") == pytest.approx(-0.18)
    assert found.effect(0, "loss") == pytest.approx(0.25)


def test_the_worst_harm_is_found_whichever_way_is_healthy(found: Interference) -> None:
    harm = found.harm
    assert harm is not None
    assert (harm.edit, harm.score.name) == (0, "loss")  # it rose, and low is healthy
    assert harm.loss == pytest.approx(0.25)


def test_edits_that_harm_nothing_are_told_apart() -> None:
    alone = [card(a=0.9, b=0.2, ira=0.9), card(a=0.1, b=0.9, ira=0.9)]
    assert of(card(a=0.9, b=0.9, ira=0.9), alone, alone[::-1]).harm is None


def test_the_order_of_additions_harms_nothing() -> None:
    alone = [card(ira=0.1 + 0.2), card(ira=0.1 + 0.2)]
    assert of(card(ira=0.3), alone, alone).harm is None


def test_a_score_that_one_measurement_lacks_has_no_effect() -> None:
    alone = [card(a=0.9), card(b=0.9)]
    found = of(card(a=0.9, b=0.9), alone, alone[::-1])
    assert found.effect(0, "ua[a]") is None
    assert found.alone[1] == {"ua[b]": 0.9}


def test_the_file_holds_every_number_as_it_was_measured(found: Interference, tmp_path: Path) -> None:
    found.write(tmp_path)
    stored = json.loads((tmp_path / "interference.json").read_text())
    assert stored == found.as_json()
    assert (stored["format"], stored["split"], stored["seeds"]) == (1, "held-out", 3)
    assert stored["scores"][3] == {"name": "loss", "unit": "mse", "direction": "down"}
    first, second = stored["edits"]
    assert (first["forget"], second["forget"], second["weight"]) == (["a"], ["b"], 0.5)
    assert first["alone"]["ua[b]"] == 0.3
    assert second["all_without_it"] == first["alone"]
    assert stored["all_together"]["ira"] == 0.7


def test_a_file_that_cannot_be_written_is_an_error_with_its_name(found: Interference, tmp_path: Path) -> None:
    (tmp_path / "run" / "interference.json").mkdir(parents=True)
    with pytest.raises(RecordError, match="interference"):
        found.write(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["interference.json"]
