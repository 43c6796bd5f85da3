"""What the stage `measure` promises: equal questions before and after, and numbers that are numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from vu_core import EditError, MeasureError, Score
from vu_core.config import RawConfig
from vu_core.edit import Edit
from vu_core.pipeline import execute
from vu_core.plugins import Plugins
from vu_core.stages.apply import apply

Raw = Callable[..., RawConfig]
FINE = Score("toy", 0.5, "length", "none", 1, before=0.5, ci_low=0.4, ci_high=0.6, change_low=-0.1, change_high=0.1)


@pytest.mark.parametrize("field", ["before", "after", "n", "ci_low", "ci_high", "change_low", "change_high"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_every_number_of_a_score_must_be_finite(
    field: str, value: float, plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vu_toy_run.broken as broken

    scores = (attrs.evolve(FINE, name="fine"), attrs.evolve(FINE, **{field: value}))
    monkeypatch.setattr(broken.NaN, "scores", lambda *a: scores)
    monkeypatch.setattr(broken.NaN, "doubts", lambda *a: [])
    with pytest.raises(MeasureError, match="gave toy, where") as caught:
        execute(raw(measure__metrics=["toy-nan"]), plugins=plugins)
    assert caught.value.code == "VU-S050"


@pytest.mark.parametrize("base", ["", "0" * 64])
def test_an_edit_is_applied_to_the_weights_it_names_only(base: str, toys: Any) -> None:
    model = toys.ToyNet("", toys.NetConfig()).load(device="cpu", precision="fp32")
    with pytest.raises(EditError) as caught, apply(model, Edit({}, base=base)):
        pytest.fail("the model was handed out")
    assert caught.value.code == "VU-E053"
    assert ("does not name" in caught.value.problem) == (base == "")
    with apply(model, Edit({}, base=model.facts.base_hash)) as same:
        assert same is model


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_the_user_made_is_left_empty_and_another_removed(
    made: bool, plugins: Plugins, raw: Raw, place: Path
) -> None:
    if made:
        (place / "mine").mkdir()
    with pytest.raises(EditError):
        execute(raw(unlearner__method="toy-empty", run__out="mine"), plugins=plugins)
    assert (place / "mine").is_dir() == made
    assert not made or list((place / "mine").iterdir()) == []
