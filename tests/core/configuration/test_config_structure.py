"""How defaults, recipe, file and flags become one configuration, and how it is written down."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vu_config_toys import parts

from vu_core import ConfigError, PluginError
from vu_core.config import FLAG_KEYS, Override, RawConfig, RunConfig, as_dict, parse_set, run_id, to_toml
from vu_core.plugins import discover
from vu_core.stages.read import read, read_toml
from vu_core.stages.structure import structure


def understood(plugins, *sets, toml=None, folder=None, **flags) -> RunConfig:
    path = None
    if toml is not None:
        path = folder / "run.toml"
        path.write_text(toml, encoding="utf-8")
    given_flags = [Override(FLAG_KEYS[f"--{name}"], value, f"--{name}") for name, value in flags.items()]
    return structure(read(path, [*given_flags, *map(parse_set, sets)]), plugins)


def test_merge_order_and_origins(toys, tmp_path):
    config = understood(
        toys,
        "unlearner.training.batch_size=4",
        "run.threads=1",
        toml="[run]\nseed = 1\nthreads = 9\n[unlearner]\nmodules=['a', 'b']\n[unlearner.training]\nbatch_size=3\nlr=1",
        folder=tmp_path,
        seed=7,
    )
    file = f"{tmp_path}/run.toml"
    expected = {
        "run.seed": (7, "--seed"),
        "run.threads": (1, "--set"),
        "run.device": ("cpu", "default"),
        "unlearner.method": ("toy-method", "default"),
        "unlearner.modules": (["a", "b"], f"{file}:5"),
        "unlearner.strength": (0.75, "recipe toy-recipe"),
        "unlearner.low": (0, "default of toy-method"),
        "unlearner.training.batch_size": (4, "--set"),
        "unlearner.training.lr": (1.0, f"{file}:8"),
        "unlearner.training.steps": (40, "recipe toy-recipe"),
        "unlearner.training.epochs": (None, "gives way to steps"),
        "unlearner.training.schedule": ("cosine", "default of toy-method"),
        "unlearner.parameters.name": ("large", "default of toy-method"),
        "unlearner.parameters.rank": (6, "default of toy-method"),
        "unlearner.parameters.alpha": (4.0, "default of large"),
        "unlearner.attribution.name": ("guess", "default of toy-method"),
        "weighting.name": ("tilted", "default of toy-method"),
        "weighting.forget": (0.9, "recipe toy-recipe"),
        "weighting.retain": (1.0, "default of tilted"),
        "measure.seeds": (3, "recipe toy-recipe"),
        "measure.metrics": (["verdict", "size"], "named by toy-data"),
        "metric.verdict.threshold": (0.5, "default of verdict"),
    }
    tables = as_dict(config)
    for key, (value, origin) in expected.items():
        found = tables
        for part in key.split("."):
            found = found[part]
        assert (found, config.origins[key]) == (value, origin), key


def test_the_recipe_is_for_its_pair_only(toys):
    config = understood(toys, model="other-model", data="toy-data")
    assert config.unlearner.config.strength == 0.5
    assert config.unlearner.config.training.epochs == 2
    assert config.weighting.config.forget == 0.3


def test_an_alias_means_its_canonical_name(toys):
    config = understood(toys, method="tm", model="toy", weighting="leaning")
    assert (config.unlearner.name, config.model.name, config.weighting.name) == ("toy-method", "toy-model", "tilted")
    assert config == understood(toys)


@pytest.mark.parametrize(
    ("sets", "steps", "epochs"),
    [
        ((), 40, None),
        (("unlearner.training.steps=7",), 7, None),
        (("unlearner.training.epochs=3",), None, 3),
    ],
)
def test_what_is_said_last_says_how_long(toys, sets, steps, epochs):
    training = understood(toys, *sets).unlearner.config.training
    assert (training.steps, training.epochs) == (steps, epochs)


def test_set_outranks_the_file_in_saying_how_long(toys, tmp_path):
    config = understood(
        toys, "unlearner.training.epochs=3", toml="[unlearner.training]\nsteps = 5\nlr = 0.1", folder=tmp_path
    )
    training = config.unlearner.config.training
    assert (training.steps, training.epochs, training.lr) == (None, 3, 0.1)


def test_settings_do_not_leak_to_another_choice(toys, tmp_path):
    assert understood(toys, weighting="even").weighting.config == parts.Empty()
    assert understood(toys, parameters="small").parameters.config == parts.SmallConfig(rank=2)
    config = understood(
        toys,
        "weighting.retain=5",
        toml="[weighting]\nname = 'tilted'\nforget = 0.1\n[unlearner.parameters]\nname = 'small'\nrank = 9",
        folder=tmp_path,
        weighting="leaning",
        parameters="large",
    )
    assert config.weighting.config == parts.TiltedConfig(0.1, 5.0), "an alias is the same choice"
    named_by_alias = "[weighting]\nname = 'leaning'\nforget = 0.1"
    kept = understood(toys, toml=named_by_alias, folder=tmp_path, weighting="tilted")
    assert (kept.weighting.config.forget, kept.notes) == (0.1, ())
    assert config.parameters.config.rank == 6, "the file's rank was for 'small', the method's is for 'large'"
    assert [note for note in config.notes if "rank of [unlearner.parameters]" in note and "'small'" in note]


def test_a_flag_for_the_model_leaves_the_files_settings_out(toys, tmp_path):
    model = "[model]\nname = 'toy-model'\nref = 'a'\nwidth = 9\n"
    text = model + "[data]\nname = 'toy-data'\nforget = ['style:dots']\ncrop = 'random'"
    config = understood(toys, toml=text, folder=tmp_path, model="other-model=b", data="plain-data")
    assert (config.model.ref, config.model.config.width) == ("b", 4)
    assert (config.data.name, config.forget) == ("plain-data", ("style:dots",))
    assert len(config.notes) == 2
    kept = understood(toys, "model.width=5", toml=text, folder=tmp_path, model="toy")
    assert (kept.model.ref, kept.model.config.width, kept.notes) == ("a", 5, ())


def test_the_fields_of_a_method_stay_when_a_flag_names_another(toys, tmp_path):
    with pytest.raises(ConfigError, match=r"unlearner\.strength is unknown"):
        understood(toys, toml="[unlearner]\nmethod = 'tm'\nstrength = 1", folder=tmp_path, method="closed-form")


def test_axes_without_a_default_of_the_method(toys):
    config = understood(toys, "unlearner.target=x", method="demanding")
    assert (config.parameters.name, config.weighting, config.attribution) == ("small", None, None)
    assert config.origins["unlearner.parameters.name"] == "default"
    closed = understood(toys, method="closed-form")
    assert (closed.parameters, closed.weighting, closed.regularizers) == (None, None, ())


def test_regularizers_in_order(toys, tmp_path):
    text = "[regularizer.push]\nforce = 3\n[regularizer.tug]\n"
    named = [(choice.name, choice.config.force) for choice in understood(toys, toml=text, folder=tmp_path).regularizers]
    assert named == [("push", 3.0), ("pull", 1.0)]
    config = understood(toys, toml=text, folder=tmp_path, regularizer=("pull", "push"))
    assert [(choice.name, choice.config.force) for choice in config.regularizers] == [("pull", 1.0), ("push", 3.0)]


def test_an_alias_in_the_name_of_a_table(toys, tmp_path):
    text = "[regularizer.tug]\nforce = 3\n[metric.judgement]\nthreshold = 0.1"
    config = understood(toys, toml=text, folder=tmp_path)
    assert config.regularizers[0].config.force == 3.0
    assert config.metrics[0].config.threshold == 0.1
    assert "[metric.verdict]\nthreshold = 0.1  # run.toml:4" in to_toml(config)
    assert config.origins["regularizer.pull.force"] == f"{tmp_path}/run.toml:2"
    assert (
        understood(toys, 'measure.metrics=["judgement"]', "metric.verdict.threshold=1").metrics[0].config.threshold
        == 1.0
    )


def test_metrics_and_their_settings(toys):
    config = understood(toys, 'measure.metrics=["size", "verdict"]', "metric.verdict.threshold=0.25")
    assert [choice.name for choice in config.metrics] == ["size", "verdict"]
    assert config.metrics[1].config.threshold == 0.25
    assert config.measure.metrics == ("size", "verdict")
    assert understood(toys, "measure.metrics=[]").metrics == ()


def test_nested_and_table_fields(toys):
    config = understood(toys, "data.shares={b = 2}", "data.limits=[3]")
    assert dict(config.data.config.shares) == {"b": 2.0}
    assert config.data.config.limits == (3,)


FILES = Path(__file__).parent / "bad_configurations"


@pytest.mark.parametrize(
    ("text", "name", "ref"),
    [
        ("toy-model", "toy-model", ""),
        ("toy", "toy-model", ""),
        ("toy=some/folder", "toy-model", "some/folder"),
        ("other-model=a=b", "other-model", "a=b"),
        ("{path}", "toy-model", "{path}"),
        ("owner/name.v2", "other-model", "owner/name.v2"),
    ],
)
def test_what_a_model_may_be_called(toys, tmp_path, text, name, ref):
    (tmp_path / "toy.json").write_text("one")
    config = understood(toys, model=text.format(path=tmp_path), data="toy-data")
    assert (config.model.name, config.model.ref) == (name, ref.format(path=tmp_path))


def test_a_registered_name_wins_over_a_folder_of_that_name(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy-model").mkdir()
    assert understood(toys, model="toy-model").model.ref == ""


def test_data_by_path(toys, tmp_path):
    (tmp_path / "x.csv").write_text("")
    config = understood(toys, data=str(tmp_path / "x.csv"))
    assert (config.data.name, config.data.ref) == ("toy-data", str(tmp_path / "x.csv"))
    assert config.origins["data.ref"] == "--data"


def test_a_plugin_that_cannot_be_loaded_does_not_stop_the_others_from_recognising(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from vu_config_toys import plugin

    from vu_core import hookimpl

    def vu_register_models(register):
        register("ghost", "vu_config_toys.parts:Ghost", summary="gone")

    ghost = ("ghosts", "1", SimpleNamespace(vu_register_models=hookimpl(vu_register_models)))
    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    plugins = discover(extra=[("toys", "1", plugin), ghost], installed=False)
    (tmp_path / "toy.json").write_text("one")
    assert understood(plugins, model=str(tmp_path), data="toy-data").model.name == "toy-model"
    with pytest.raises(ConfigError, match="Ghost"):
        understood(plugins, model=str(FILES), data="toy-data")


def test_an_unreadable_recipe_is_left_out_and_told(monkeypatch):
    from types import SimpleNamespace

    from vu_config_toys import plugin

    from vu_core import hookimpl

    def vu_register_recipes(register):
        register("torn", "vu_config_toys:missing.toml", summary="torn")

    torn = ("torn-dist", "1", SimpleNamespace(vu_register_recipes=hookimpl(vu_register_recipes)))
    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    config = understood(discover(extra=[("toys", "1", plugin), torn], installed=False))
    assert config.unlearner.config.strength == 0.75
    assert any("'torn' cannot be loaded" in note and "left out" in note for note in config.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[unlearner]\nstrength = 1\n", "no table \\[recipe\\]"),
        ("[recipe]\nmodel = 'toy'\nmethod = 'closed-form'\n[data]\nforget = ['style:neon']\n", "sets 'data'"),
    ],
)
def test_a_recipe_sets_what_a_recipe_may_set(monkeypatch, tmp_path, text, said):
    from types import SimpleNamespace

    from vu_config_toys import plugin

    from vu_core import hookimpl

    package = tmp_path / "odd_recipes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "odd.toml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "odd_recipes", raising=False)

    def vu_register_recipes(register):
        register("odd", "odd_recipes:odd.toml", summary="odd")

    odd = ("odd-dist", "1", SimpleNamespace(vu_register_recipes=hookimpl(vu_register_recipes)))
    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    plugins = discover(extra=[("toys", "1", plugin), odd], installed=False)
    if "recipe" in said:
        assert any("no table [recipe]" in note for note in understood(plugins).notes)
    else:
        assert understood(plugins).unlearner.name == "toy-method"
        with pytest.raises(PluginError, match=said):
            understood(plugins, method="closed-form")


@pytest.mark.parametrize(
    ("kind", "name", "flags"),
    [
        ("weightings", "tilted", {"weighting": "even"}),
        ("weightings", "leaning", {"weighting": "even"}),
        ("parameters", "large", {"parameters": "small"}),
    ],
)
def test_a_name_in_conflict_stands_in_nobodys_way_who_does_not_use_it(monkeypatch, kind, name, flags):
    from types import SimpleNamespace

    from vu_config_toys import plugin

    from vu_core import hookimpl

    def claim(register):
        register(name, f"{parts.__name__}:Even", summary="mine")

    thief = ("thief", "1", SimpleNamespace(**{f"vu_register_{kind}": hookimpl(claim)}))
    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    plugins = discover(extra=[("toys", "1", plugin), thief], installed=False)
    config = understood(plugins, **flags)
    (axis, chosen), *_ = flags.items()
    assert getattr(config, axis).name == chosen
    if name != "leaning":
        with pytest.raises(PluginError, match="claimed more than once"):
            understood(plugins)


def test_two_default_models_stand_in_nobodys_way_who_names_one(monkeypatch):
    from types import SimpleNamespace

    from vu_config_toys import plugin

    from vu_core import hookimpl

    def claim(register):
        register("best-model", f"{parts.__name__}:ToyModel", summary="better", default=True)

    thief = ("thief", "1", SimpleNamespace(vu_register_models=hookimpl(claim)))
    monkeypatch.setenv("VU_DISABLE_PLUGINS", "vu-core")
    plugins = discover(extra=[("toys", "1", plugin), thief], installed=False)
    assert understood(plugins, model="toy-model").model.name == "toy-model"
    with pytest.raises(ConfigError, match=r"data\.name is required") as caught:
        understood(plugins, model="other-model")
    assert caught.value.where == "--model", "the model made it necessary"


# Written down and read again


def test_the_written_configuration_repeats_the_run(toys, tmp_path):
    first = understood(toys, "model.variant='fp16'", seed=3, forget=("style:dots",), regularizer=("push",), out="x")
    text = to_toml(first)
    assert "strength = 0.75  # recipe toy-recipe" in text
    assert "out" not in text.split("[model]")[0]
    second = understood(toys, toml=text, folder=tmp_path)
    assert second == attrs.evolve(first, run=attrs.evolve(first.run, out=None))
    assert to_toml(second).splitlines()[1] == f"seed = 3  # run.toml:{2}", "no folder of a machine is recorded"


characters = st.characters(codec="utf-8", exclude_categories=("Cs",))
plain_texts = st.text(characters, min_size=1, max_size=8).filter(str.strip)
positive = st.floats(min_value=1e-12, max_value=1e12, allow_nan=False)
training = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(1, 10**6),
        "lr": positive,
        "schedule": st.sampled_from(["constant", "linear", "cosine"]),
        "max_grad_norm": st.integers(0, 5),
    },
).flatmap(
    lambda rest: st.one_of(
        st.just(rest),
        st.integers(1, 10**6).map(lambda steps: {**rest, "steps": steps}),
        st.integers(1, 10**6).map(lambda epochs: {**rest, "epochs": epochs}),
    )
)
weighting = st.one_of(
    st.just({"name": "even"}),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["tilted", "leaning"])}, optional={"forget": positive, "retain": positive}
    ),
    st.fixed_dictionaries({}, optional={"forget": positive}),
)
configurations = st.fixed_dictionaries(
    {},
    optional={
        "run": st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**63 - 1), "threads": st.integers(1, 64)}),
        "model": st.fixed_dictionaries(
            {}, optional={"ref": plain_texts, "width": st.integers(1, 64), "variant": plain_texts}
        ),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "forget": st.lists(plain_texts, max_size=3),
                "overwrite": st.lists(plain_texts, max_size=2),
                "limits": st.lists(st.integers(0, 2**62), max_size=3),
                "shares": st.dictionaries(
                    st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=3
                ),
            },
        ),
        "unlearner": st.fixed_dictionaries(
            {},
            optional={
                "strength": st.floats(min_value=1e-9, max_value=1, allow_nan=False),
                "modules": st.lists(plain_texts, max_size=3),
                "careful": st.booleans(),
                "training": training,
                "parameters": st.fixed_dictionaries(
                    {"name": st.sampled_from(["small", "large"])}, optional={"rank": st.integers(1, 99)}
                ),
            },
        ),
        "weighting": weighting,
        "regularizer": st.dictionaries(
            st.sampled_from(["pull", "push"]), st.fixed_dictionaries({}, optional={"force": positive}), max_size=2
        ),
        "measure": st.fixed_dictionaries(
            {},
            optional={
                "metrics": st.lists(st.sampled_from(["size", "verdict"]), unique=True),
                "guidance": st.floats(min_value=0, max_value=30, allow_nan=False),
                "steps": st.integers(1, 100),
            },
        ),
    },
)


def test_writing_and_reading_is_the_identity(toys):
    @settings(deadline=None, max_examples=100, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(values=configurations)
    def holds(values):
        first = structure(RawConfig(values), toys)
        text = to_toml(first)
        second = structure(RawConfig(*read_toml(text, "run.toml")), toys)
        assert second == first
        assert without_origins(to_toml(second)) == without_origins(text)
        assert identity(second) == identity(first)

    holds()


def without_origins(text):
    return [line.split("  # ")[0] for line in text.splitlines()]


def identity(config, **changes):
    arguments = {"base_hash": "b", "data_digest": "d", "versions": {"vu-core": "1"}, **changes}
    return run_id(config, **arguments)


def test_the_run_id_names_what_is_computed(toys):
    config = understood(toys, seed=1)
    name = identity(config)
    assert len(name) == 12
    assert int(name, 16) >= 0
    same = [{"out": "elsewhere"}, {"device": "cpu"}]
    for change in same:
        assert identity(attrs.evolve(config, run=attrs.evolve(config.run, **change))) == name
    cuda = [
        identity(attrs.evolve(config, run=attrs.evolve(config.run, device=device))) for device in ("cuda:0", "cuda:3")
    ]
    assert cuda[0] == cuda[1] != name
    others = [
        identity(attrs.evolve(config, run=attrs.evolve(config.run, seed=2))),
        identity(understood(toys, "unlearner.training.lr=1", seed=1)),
        identity(understood(toys, seed=1, forget=("style:dots",))),
        identity(understood(toys, "metric.verdict.threshold=0.1", seed=1)),
        identity(config, base_hash="c"),
        identity(config, data_digest="e"),
        identity(config, versions={"vu-core": "2"}),
    ]
    assert len({name, *others}) == len(others) + 1
