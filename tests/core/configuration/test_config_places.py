"""Where models and data lie: found from every folder, part of no name, never asked for on the network by mistake."""

from __future__ import annotations

import pytest
from test_config_structure import identity, understood
from vu_config_toys import parts

from vu_core import ConfigError, PluginError
from vu_core.config import as_dict, to_toml
from vu_core.stages.load import configuration_digests


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a model, data and a folder beside them."""
    for place in ("models/my-sd", "images", "parts"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "models" / "my-sd" / "toy.json").write_text("one")
    (tmp_path / "list.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_repeated_from_another_folder(toys, here, tmp_path, monkeypatch):
    first = understood(toys, "data.base=parts", model="toy=models/my-sd", data="list.csv", seed=1)
    assert first.model.ref == str(here / "models" / "my-sd")
    assert first.data.ref == str(here / "list.csv")
    assert first.data.config.base == str(here / "parts")
    text = to_toml(first)
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = understood(toys, toml=text, folder=elsewhere)
    assert again == first
    assert identity(again) == identity(first)


def test_a_plugin_settles_refs_that_only_it_understands(toys, here, monkeypatch):
    settle = staticmethod(lambda ref: f"{here}/{ref}")
    monkeypatch.setattr(parts.ToyModel, "settle", settle, raising=False)
    first = understood(toys, model="toy=net.py:make", data="toy-data", seed=1)
    assert first.model.ref == f"{here}/net.py:make"
    (here / "elsewhere").mkdir()
    monkeypatch.setattr(parts.ToyModel, "settle", staticmethod(lambda ref: ref))
    assert understood(toys, toml=to_toml(first), folder=here / "elsewhere") == first


def test_a_plugin_that_fails_to_settle_a_ref_is_named(toys, here, monkeypatch):
    monkeypatch.setattr(parts.ToyModel, "settle", staticmethod(lambda ref: 1 / 0), raising=False)
    with pytest.raises(PluginError, match=r"model 'toy-model' of .* failed: ZeroDivisionError") as caught:
        understood(toys, model="toy=net.py:make", data="toy-data")
    assert caught.value.code == "VU-P009"


@pytest.mark.parametrize(
    "model", ["models/my-sd", "./models/../models/my-sd", "toy=models/my-sd", "{here}/models/my-sd"]
)
def test_one_place_has_one_name(toys, here, model):
    assert understood(toys, model=model.format(here=here), data="toy-data").model.ref == str(here / "models" / "my-sd")


def test_a_link_keeps_its_name_and_what_lies_beside_it(toys, here):
    (here / "store").mkdir()
    (here / "store" / "0f3a").write_text("")
    (here / "links").mkdir()
    (here / "links" / "list.csv").symlink_to(here / "store" / "0f3a")
    assert understood(toys, data="links/list.csv").data.ref == str(here / "links" / "list.csv")


def test_behind_a_link_the_folder_above_is_that_of_its_target(toys, here):
    (here / "images" / "inner").mkdir()
    (here / "images" / "list.csv").write_text("")
    (here / "link").symlink_to(here / "images" / "inner")
    assert understood(toys, data="link/../list.csv").data.ref == str(here / "images" / "list.csv")


def test_the_home_folder(toys, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    config = understood(toys, model="toy=~/models/my-sd", data="~/list.csv")
    assert (config.model.ref, config.data.ref) == (str(here / "models" / "my-sd"), str(here / "list.csv"))


def test_a_place_is_no_part_of_the_name_of_a_run(toys, here, monkeypatch):
    def described():
        config = understood(toys, "data.base=parts", model="toy=models/my-sd", data="toy-data=list.csv", seed=1)
        return config, identity(config), configuration_digests(config)

    first = described()
    moved = here / "moved"
    moved.mkdir()
    for name in ("models", "parts", "list.csv"):
        (here / name).rename(moved / name)
    monkeypatch.chdir(moved)
    second = described()
    assert second[0] != first[0]
    assert second[1:] == first[1:]
    assert str(here) not in str(as_dict(first[0], places=False))


def test_what_is_no_place_is_part_of_the_name_of_a_run(toys, here):
    names = {
        identity(understood(toys, *sets, model="other-model=owner/name", data="toy-data", seed=1))
        for sets in ((), ("data.base=nowhere",), ("data.base=nowhere else",))
    }
    names.add(identity(understood(toys, model="other-model=owner/other", data="toy-data", seed=1)))
    assert len(names) == 4


def test_a_flag_says_another_place_than_the_file(toys, here):
    text = "[model]\nname = 'toy=models/my-sd'\n[data]\nname = 'toy-data'\nref = 'list.csv'"
    config = understood(toys, "model.ref=images", toml=text, folder=here, data="toy-data=parts")
    assert config.model.ref == str(here / "images")
    assert config.data.ref == str(here / "parts")
    assert (config.origins["model.ref"], config.origins["data.ref"]) == ("--set", "--data")


@pytest.mark.parametrize(
    ("flags", "key", "said"),
    [
        ({"model": "models/my-sdd"}, "model.name", "Did you mean 'models/my-sd'?"),
        ({"model": "other-model=models/my-sdd"}, "model.name", "Did you mean 'models/my-sd'?"),
        ({"model": "models/nothere"}, "model.name", "no file or folder 'models/nothere'"),
        ({"model": "./model/my-sd"}, "model.name", "Did you mean 'models'?"),
        ({"model": "a/b/c"}, "model.name", "no file or folder 'a/b/c'"),
        ({"data": "./imgaes"}, "data.name", "Did you mean 'images'?"),
    ],
)
def test_a_path_that_is_not_there_is_told_before_any_network(toys, here, monkeypatch, flags, key, said):
    def inspect(self):
        raise AssertionError("the plugin would ask the network")

    monkeypatch.setattr(parts.ToyModel, "inspect", inspect)
    with pytest.raises(ConfigError) as caught:
        understood(toys, **{"data": "toy-data", **flags})
    assert caught.value.code == "VU-C006"
    assert said in caught.value.problem
    assert caught.value.where.startswith(key)


def test_it_is_told_where_nobody_takes_hub_ids_too(toys, here, monkeypatch):
    monkeypatch.setattr(parts.OtherModel, "takes_hub_ids", False)
    with pytest.raises(ConfigError, match="Did you mean 'models/my-sd'"):
        understood(toys, model="models/my-sdd", data="toy-data")


def test_the_ref_of_a_file_is_no_mistyped_path_either(toys, here):
    text = "[model]\nname = 'other-model'\nref = 'models/my-sdd'\n[data]\nname = 'toy-data'"
    with pytest.raises(ConfigError, match="Did you mean 'models/my-sd'") as caught:
        understood(toys, toml=text, folder=here)
    assert caught.value.where == f"model.ref ({here / 'run.toml'}:3)"
    assert "hub is not asked" in caught.value.remedy


def test_a_hub_id_beside_no_such_folder_is_one(toys, here):
    assert understood(toys, model="model/my-sd", data="toy-data").model.ref == "model/my-sd"


def test_a_word_that_is_neither_a_name_nor_a_path(toys, here):
    with pytest.raises(PluginError) as caught:
        understood(toys, data="imgaes")
    assert "There is no data 'imgaes'." in caught.value.problem
    assert "no file or folder 'imgaes' either. Did you mean 'images'?" in caught.value.problem
    with pytest.raises(PluginError) as caught:
        understood(toys, data="imagefolder")
    assert "either" not in caught.value.problem, "a published name wants to be installed"
