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


def changed(data, column):
    return attrs.evolve(data, forget=attrs.evolve(data.forget, tensors={**data.forget.tensors, "x": column}))


def test_scores_of_other_tables_are_not_served(tmp_path):
    cached = CachedAttribution(Given(2.0), "given", NoSettings(), "", Cache(tmp_path / "cache"))
    run, data = toy_run(tmp_path, attribution=cached, data_digest="the same"), toy_data()
    x = data.forget.tensors["x"]
    captions = attrs.evolve(data, retain=attrs.evolve(data.retain, captions=("other",) * 7))
    fewer = attrs.evolve(data, forget=toy_data(forget=4).forget)
    others = (data, changed(data, x + 1e-6), changed(data, x.double()), captions, fewer)
    for count, tables in enumerate(others, 1):
        for _ in range(2):
            run.attribute(toy_model(), tables)
        assert cached.inner.calls == count
    run.attribute(toy_model(), changed(data, x.clone()))
    assert cached.inner.calls == len(others)


@pytest.mark.parametrize("change", [{"reload": True}, {"tensors": {}}])
def test_scores_of_images_that_are_not_encoded_are_not_kept(change, tmp_path):
    cache = Cache(tmp_path / "cache")
    cached = CachedAttribution(Given(2.0), "given", NoSettings(), "", cache)
    run, data = toy_run(tmp_path, attribution=cached), toy_data()
    loaded = attrs.evolve(data.forget, load=lambda row, generator: torch.zeros(3, 4, 4), **change)
    for _ in range(2):
        run.attribute(toy_model(), attrs.evolve(data, forget=loaded))
    assert cached.inner.calls == 2
    assert cache.entries() == ()


def test_scores_are_looked_at_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("vu_core.cache.require_finite", lambda scores, name: looked.append("cache"))
    monkeypatch.setattr("vu_core.run.require_finite", lambda scores, name: looked.append("run"))
    cached = CachedAttribution(Given(2.0), "given", NoSettings(), "", Cache(tmp_path / "cache"))
    for attribution in (cached, cached, Given(2.0)):
        toy_run(tmp_path, attribution=attribution).attribute(toy_model(), toy_data())
    assert looked == ["cache", "run"]
