"""Methods that wrap another one, regularizers that a method wants, and regularizers that honour an axis."""

from __future__ import annotations

import attrs
import pytest

from vu_cli import facts
from vu_core import ConfigError, PlanError, PluginError
from vu_core.config import FLAG_KEYS, Override, as_dict, parse_set, to_toml
from vu_core.config.layers import constant_layer, lay
from vu_core.describe import describe
from vu_core.stages.plan import plan
from vu_core.stages.read import read
from vu_core.stages.structure import structure


def understood(plugins, *sets, path=None, **flags):
    given = [Override(FLAG_KEYS[f"--{name}"], value, f"--{name}") for name, value in flags.items()]
    return structure(read(path, [*given, *map(parse_set, sets)]), plugins)


# ---- base methods ---------------------------------------------------------------------------------------------------


def test_settings_of_the_base_method_are_kept_as_written(toys):
    config = understood(toys, "unlearner.base.strength=0.25", 'unlearner.base.modules=["a"]', method="wrapper")
    assert config.unlearner.config.base_method == "toy-method"
    assert config.unlearner.config.base == {"strength": 0.25, "modules": ["a"]}


def test_they_are_written_down_and_read_again(toys, tmp_path):
    config = understood(toys, "unlearner.base.strength=0.25", method="wrapper", seed=1)
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    again = understood(toys, path=path)
    assert as_dict(again) == as_dict(config)
    assert again.unlearner.config.base == {"strength": 0.25}


def test_file_and_flags_are_laid_over_each_other(toys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[unlearner]\nmethod = 'wrapper'\n[unlearner.base]\nstrength = 0.25\nlow = 3\n", encoding="utf-8")
    assert understood(toys, "unlearner.base.low=4", path=path).unlearner.config.base == {"strength": 0.25, "low": 4}


def test_settings_belong_to_the_method_that_they_were_written_for(toys):
    from vu_config_toys import parts

    config = attrs.resolve_types(parts.WrapperConfig)
    recipe = {"base_method": "one", "base": {"low": 1}}

    def base(**user):
        layers = [constant_layer(values, "", rank) for rank, values in enumerate((recipe, user))]
        return lay(config, layers, "unlearner", pytest.fail)["base"].value

    assert base(base={"high": 2}) == {"low": 1, "high": 2}
    assert base(base_method="one", base={"high": 2}) == {"low": 1, "high": 2}
    assert base(base_method="other", base={"high": 2}) == {"high": 2}
    assert base(base_method="other") == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("unlearner.base.strenght=0.5",), ("unlearner.base.strenght is unknown", "strength")),
        (("unlearner.base.strength=2",), ("unlearner.base.strength must be <= 1",)),
        (("unlearner.base.strength='much'",), ("unlearner.base.strength must be a number",)),
        (("unlearner.base.low=20",), ("low must be less than high",)),
        (("unlearner.base.training.steps=3",), ("unlearner.base.training is no setting here",)),
        (("unlearner.base=3",), ("unlearner.base must be a table",)),
        (("unlearner.base.strength=2", "unlearner.base.low=-1"), ("base.strength must", "base.low must")),
    ],
)
def test_what_the_base_method_would_not_take_is_told(toys, settings, words):
    with pytest.raises(ConfigError) as error:
        understood(toys, *settings, method="wrapper")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_base_method_that_nobody_brings_has_near_misses(toys):
    with pytest.raises(PluginError) as error:
        understood(toys, "unlearner.base_method='toy-methd'", method="wrapper")
    assert "'toy-method'" in str(error.value)


def test_a_plan_names_the_base_method_and_what_it_was_told(toys):
    rows = dict(facts.choices(understood(toys, "unlearner.base.strength=0.25", method="wrapper")))
    assert rows["inside"] == "toy-method: strength 0.25"
    assert dict(facts.choices(understood(toys, method="wrapper")))["inside"] == "toy-method"


def test_what_the_base_method_needs_is_needed(toys):
    with pytest.raises(PlanError) as error:
        plan(understood(toys, "measure.metrics=['size']", method="wrapper", model="mute-model", data="toy-data"), toys)
    assert error.value.code == "VU-L002"
    assert "'toy-method' needs 'denoise'" in str(error.value)


def test_one_of_two_capabilities_will_do(toys):
    plan(understood(toys, method="either"), toys)
    with pytest.raises(PlanError) as error:
        plan(understood(toys, "measure.metrics=['size']", method="either", model="mute-model", data="toy-data"), toys)
    assert "needs 'denoise' or 'classify'" in str(error.value)


# ---- regularizers ---------------------------------------------------------------------------------------------------


def test_a_method_brings_its_regularizer(toys):
    config = understood(toys, method="wrapper", seed=1)
    assert [(each.name, each.config.force) for each in config.regularizers] == [("drag", 3.0)]
    assert config.origins["regularizer.drag.force"] == "default of wrapper"
    assert "[regularizer.drag]\nforce = 3.0" in to_toml(config)


def test_what_the_user_says_of_it_holds(toys):
    config = understood(toys, "regularizer.drag.force=5", "regularizer.pull.force=2", method="wrapper")
    assert {each.name: each.config.force for each in config.regularizers} == {"drag": 5.0, "pull": 2.0}
    assert config.origins["regularizer.drag.force"] == "--set"


def test_describe_shows_it(toys):
    [shown] = describe("wrapper", toys)
    assert "[regularizer.drag]\nforce = 3.0" in shown.toml


def test_a_regularizer_honours_an_attribution_for_any_method(toys):
    sets = ("unlearner.target='x'", "unlearner.attribution.name='guess'")
    config = understood(toys, *sets, method="plain-method", regularizer=("drag",))
    assert config.attribution is not None
    assert config.attribution.name == "guess"
    with pytest.raises(PlanError) as error:
        understood(toys, *sets, method="plain-method", regularizer=("pull",))
    assert error.value.code == "VU-L001"
