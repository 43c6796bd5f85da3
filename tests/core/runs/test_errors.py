"""Hints in messages."""

from __future__ import annotations

import pytest

from vu_core import PluginError, did_you_mean
from vu_core.registry import Entry, Registry


def test_a_hint_is_never_the_word_itself() -> None:
    assert did_you_mean("munba", ["munba"]) == ""
    assert did_you_mean("munba", ["munba", "munbas"]) == " Did you mean 'munbas'?"


def test_a_published_name_that_is_not_installed_is_not_offered_as_a_correction() -> None:
    fade = Entry("unlearner", "fade", "vu_x:Fade", "Fades.", "vu-x", "1.0")
    registry = Registry((fade,), directory={"unlearner": {"munba": "vu-munba"}})
    with pytest.raises(PluginError) as caught:
        registry.get("unlearner", "munba")
    assert "Did you mean" not in caught.value.problem
    assert caught.value.remedy == "Installed: fade. Try: pip install vu-munba"
