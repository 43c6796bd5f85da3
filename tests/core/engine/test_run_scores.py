"""Scores that cannot be ranked are refused where they come back, and are never kept."""

import attrs
import pytest
import torch
from engine_toys import toy_data, toy_model, toy_run

from vu_core import UnlearnError
from vu_core.cache import Cache, CachedAttribution


@attrs.define
class Given:
    """An attribution with the scores it was made with."""

    value: float
    version = "1"
    calls: int = 0

    def attribute(self, model, data, run, *, candidates=None):
        self.calls += 1
        return {"a": torch.ones(3), "b": torch.tensor([1.0, self.value])}


@attrs.frozen
class NoSettings:
    pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_name_attribution_and_tensor(value, tmp_path):
    run = toy_run(tmp_path, attribution=Given(value))
    with pytest.raises(UnlearnError, match=r"'Given'.*'b'") as error:
        run.attribute(toy_model(), toy_data())
    assert error.value.code == "VU-U036"


def test_scores_that_are_not_finite_are_not_kept(tmp_path):
    cache = Cache(tmp_path / "cache")
    broken = CachedAttribution(Given(float("nan")), "given", NoSettings(), "", cache)
    run = toy_run(tmp_path, attribution=broken)
    with pytest.raises(UnlearnError, match=r"'given'.*'b'"):
        run.attribute(toy_model(), toy_data())
    assert cache.entries() == ()
    sound = CachedAttribution(Given(2.0), "given", NoSettings(), "", cache)
    run = toy_run(tmp_path, attribution=sound)
    for _ in range(2):
        assert run.attribute(toy_model(), toy_data())["b"].tolist() == [1.0, 2.0]
    assert sound.inner.calls == 1
