"""What can be set, and a block that can be pasted."""

from __future__ import annotations

import pytest

from vu_core import PluginError
from vu_core.describe import describe
from vu_core.stages.read import read, read_toml
from vu_core.stages.structure import structure


def test_a_method_with_its_axes_and_recipe(toys):
    (shown,) = describe("tm", toys, model="toy")
    by_key = {parameter.key: parameter for parameter in shown.parameters}
    assert shown.text.startswith("Forget toys.")
    assert shown.source.paper == "A toy, 2020"
    assert shown.notes == ()
    strength = by_key["unlearner.strength"]
    assert (strength.type, strength.default, strength.origin) == ("number", 0.75, "recipe toy-recipe")
    assert (strength.range, strength.help, strength.required, strength.speed_only) == (
        "> 0, <= 1",
        "how strong",
        False,
        False,
    )
    assert by_key["unlearner.careful"].speed_only
    assert by_key["weighting.forget"].default == 0.9
    assert by_key["unlearner.parameters.rank"].origin == "default of toy-method"
    assert by_key["unlearner.training.epochs"].default is None

    (plain,) = describe("toy-method", toys)
    assert {parameter.key: parameter for parameter in plain.parameters}["unlearner.strength"].default == 0.5


def test_the_block_is_a_configuration_that_changes_nothing(toys, tmp_path):
    (shown,) = describe("toy-method", toys, model="toy-model")
    path = tmp_path / "run.toml"
    path.write_text(shown.toml)
    assert structure(read(path), toys) == structure(read(), toys)
    assert "strength = 0.75  # how strong; > 0, <= 1" in shown.toml


@pytest.mark.parametrize(
    ("name", "kind", "start"),
    [
        ("toy-model", "model", '[model]\nname = "toy-model"\nwidth = 4'),
        ("toy-data", "dataset", '[data]\nname = "toy-data"\n# forget'),
        ("tilted", "weighting", '[weighting]\nname = "tilted"\nforget = 1.0'),
        ("small", "parameters", '[unlearner.parameters]\nname = "small"'),
        ("guess", "attribution", '[unlearner.attribution]\nname = "guess"'),
        ("pull", "regularizer", "[regularizer.pull]\nforce = 1.0"),
        ("verdict", "metric", "[metric.verdict]\nthreshold = 0.5"),
        ("toy-recipe", "recipe", "[unlearner]\nstrength = 0.75"),
    ],
)
def test_every_kind_has_its_block(toys, name, kind, start):
    (shown,) = describe(name, toys)
    assert shown.entry.kind == kind
    assert shown.toml.startswith(start)
    read_toml(shown.toml, "block")


def test_required_fields_and_missing_recipes_are_told(toys):
    (shown,) = describe("demanding", toys, model="toy-model")
    target = next(parameter for parameter in shown.parameters if parameter.key == "unlearner.target")
    assert target.required
    assert "# target = ...  # must be said; required" in shown.toml
    assert shown.notes == ("There is no recipe for model 'toy-model' and method 'demanding'.",)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("toy-metod", "Did you mean 'toy-method'"),
        ("tiltd", "no weighting 'tiltd'. Did you mean 'tilted'"),
        ("fade-sparse", "pip install vu-fade"),
        ("xyzzy", "no plugin 'xyzzy'"),
        ("missing-target", "cannot be loaded"),
    ],
)
def test_unknown_names(toys, name, said):
    with pytest.raises(PluginError) as caught:
        describe(name, toys)
    assert said in str(caught.value)


def test_one_kind_only(toys):
    with pytest.raises(PluginError, match="There is no metric 'tilted'"):
        describe("tilted", toys, kind="metric")
