"""Whatever one plugin does, it is shown, and the others work."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from vu_core import Event, PluginError, Register, hookimpl
from vu_core.hookspecs import KINDS
from vu_core.plugins import HEAVY, discover, read_directory
from vu_core.registry import Entry, Registry

TARGET = "vu_config_toys.parts:Even"


def distribution(name, **hooks):
    return (name, "0.1", SimpleNamespace(**{key: hookimpl(function) for key, function in hooks.items()}))


def brings(*names, **options):
    def vu_register_weightings(register: Register):
        for name in names:
            register(name, TARGET, summary="a weighting", **options)

    return vu_register_weightings


def found(*distributions):
    return discover(extra=distributions, installed=False)


def state_of(plugins, name):
    return next(each for each in plugins.distributions if each.name == name)


def test_a_third_party_name_is_as_good_as_a_built_in():
    plugins = found(distribution("guests", vu_register_weightings=brings("guest", aliases=("visitor",))))
    entry = plugins.registry.get("weighting", "visitor")
    assert (entry.name, entry.distribution, entry.version, entry.state) == ("guest", "guests", "0.1", "ready")
    assert plugins.registry.get("weighting", "simple").distribution == "vu-core"
    assert entry.load().__name__ == "Even"


@pytest.mark.parametrize(
    ("hooks", "cause"),
    [
        ({"vu_register_weightings": lambda register: 1 / 0}, "ZeroDivisionError: division by zero"),
        ({"vu_register_weightings": lambda register: sys.exit(3)}, "SystemExit: 3"),
        ({"vu_register_weightingz": brings("x")}, "vu_register_weightingz is no hook of vu. Did you mean"),
        ({"vu_register_weightings": lambda register, other: None}, "PluginValidationError"),
        ({"vu_register_weightings": brings("Not-Kebab")}, "not kebab-case"),
        ({"vu_register_weightings": brings("two--hyphens")}, "not kebab-case"),
        ({"vu_register_weightings": brings("fine", aliases=("under_score",))}, "'under_score' is not kebab-case"),
        ({"vu_register_weightings": brings("same", "same")}, "registered twice"),
        ({"vu_register_weightings": brings("same", aliases=("same",))}, "registered twice"),
        ({"vu_register_weightings": brings("x", aliases="abc")}, "aliases must be a list of texts"),
        (
            {"vu_register_weightings": brings("x", needs=("denoize",))},
            "unknown need 'denoize'. Did you mean 'denoise'?",
        ),
        ({"vu_register_weightings": brings("x", axes=("weighting",))}, "only methods and regularizers have axes"),
        ({"vu_register_weightings": lambda r: None}, "PluginValidationError"),
        ({"vu_register_weightings": lambda register: register("x", "no_colon", summary="x")}, "'module:attribute'"),
        ({"vu_register_weightings": lambda register: register("x", TARGET, summary=" ")}, "one line of text"),
        ({"vu_register_weightings": lambda register: register("x", TARGET)}, "TypeError"),
        ({"vu_register_recipes": lambda register: register("x", "a:b.json", summary="x")}, "'package:file.toml'"),
        (
            {"vu_register_unlearners": lambda register: register("x", TARGET, summary="x", axes=("weights",))},
            "unknown axis 'weights'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "hooks",
)
def test_a_broken_plugin_is_shown_with_its_cause_and_brings_nothing(hooks, cause):
    plugins = found(
        distribution("bad-one", vu_register_metrics=lambda register: register("m", TARGET, summary="m"), **hooks),
        distribution("good-one", vu_register_weightings=brings("good")),
    )
    shown = state_of(plugins, "bad-one")
    assert shown.state == "broken"
    assert cause in shown.cause
    assert "what to do" not in shown.cause, "the problem alone"
    assert [entry.name for entry in plugins.registry.entries() if entry.distribution == "bad-one"] == []
    assert plugins.registry.get("weighting", "good").state == "ready"


def test_a_hook_without_its_marker_is_broken():
    def vu_register_weightings(register):
        raise AssertionError("nobody calls it")

    shown = state_of(
        found(("forgetful", "1", SimpleNamespace(vu_register_weightings=vu_register_weightings))), "forgetful"
    )
    assert shown.state == "broken"
    assert "lacks the marker @hookimpl" in shown.cause


def test_a_broken_plugin_hears_no_events():
    heard = []
    found(
        distribution("bad", vu_register_metrics=lambda register: 1 / 0, vu_on_event=lambda event: heard.append(event))
    ).tell(Event("note", "plan"))
    assert heard == []


def test_a_name_claimed_twice_is_an_error_for_both_and_for_nobody_else():
    plugins = found(
        distribution("first", vu_register_weightings=brings("shared", "mine")),
        distribution("second", vu_register_weightings=brings("shared", "yours")),
    )
    registry = plugins.registry
    entries = [entry for entry in registry.entries("weighting") if entry.name == "shared"]
    assert [entry.state for entry in entries] == ["conflict", "conflict"]
    assert "second 0.1 claims 'shared' too" in entries[0].cause
    assert {registry.get("weighting", name).state for name in ("mine", "yours")} == {"ready"}
    assert "shared" not in registry.usable_names("weighting")
    with pytest.raises(PluginError, match=r"first 0\.1.*second 0\.1") as caught:
        registry.get("weighting", "shared")
    assert caught.value.code == "VU-P002"
    with pytest.raises(PluginError, match="cannot be used") as caught:
        entries[0].load()
    assert caught.value.code == "VU-P002"


def test_an_alias_claimed_twice_leaves_the_canonical_names_usable():
    registry = found(distribution("thief", vu_register_weightings=brings("loot", aliases=("simple",)))).registry
    owners = {entry.name: entry.state for entry in registry.entries("weighting")}
    assert (owners["simple"], owners["loot"]) == ("conflict", "conflict")
    assert registry.get("weighting", "loot").usable
    with pytest.raises(PluginError, match="claimed more than once"):
        registry.get("weighting", "simple")


def test_the_same_name_in_two_kinds_is_no_conflict():
    def vu_register_regularizers(register):
        register("both", TARGET, summary="r")

    registry = found(
        distribution("a", vu_register_weightings=brings("both")),
        distribution("b", vu_register_regularizers=vu_register_regularizers),
    ).registry
    assert registry.get("weighting", "both").distribution == "a"
    assert registry.get("regularizer", "both").distribution == "b"


def test_two_defaults_are_an_error_only_when_the_default_is_used():
    registry = found(
        distribution("a", vu_register_weightings=brings("mine", default=True)),
        distribution("b", vu_register_weightings=brings("yours", default=True)),
    ).registry
    assert registry.get("weighting", "mine").name == "mine"
    with pytest.raises(PluginError) as caught:
        registry.default("weighting")
    assert caught.value.code == "VU-P006"
    assert registry.default("exporter") is None


def test_a_default_in_conflict_is_told_as_a_conflict():
    registry = found(
        distribution("a", vu_register_audits=audits("probe", default=True)),
        distribution("b", vu_register_audits=audits("probe")),
    ).registry
    with pytest.raises(PluginError, match="claimed more than once") as caught:
        registry.default("audit")
    assert caught.value.code == "VU-P002"


def audits(name, **options):
    return lambda register: register(name, TARGET, summary="an audit", **options)


def test_hooks_with_another_function_name_and_wrappers():
    def names(register):
        register("renamed", TARGET, summary="renamed")

    plugin = SimpleNamespace(anything=hookimpl(specname="vu_register_weightings")(names))
    assert found(("renaming", "1", plugin)).registry.get("weighting", "renamed").usable

    def vu_on_event(event):
        yield

    wrapping = SimpleNamespace(vu_on_event=hookimpl(wrapper=True)(vu_on_event))
    assert "wrapper of hooks" in state_of(found(("wrapping", "1", wrapping)), "wrapping").cause


def test_blocked_distributions_are_not_imported(monkeypatch, tmp_path):
    package = tmp_path / "evil_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    info = tmp_path / "Evil_Plugin-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Evil_Plugin\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[vu.plugins]\nevil = evil_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    broken = state_of(discover(), "evil-plugin")
    assert (broken.state, broken.version, broken.entry_point) == ("broken", "2.0", "evil")
    assert "SystemExit: imported" in broken.cause

    monkeypatch.setenv("VU_DISABLE_PLUGINS", " evil.plugin ,other")
    monkeypatch.delitem(sys.modules, "evil_plugin", raising=False)
    assert state_of(discover(), "evil-plugin").state == "blocked"
    assert "evil_plugin" not in sys.modules
    other = state_of(discover(), "other")
    assert (other.state, other.cause) == ("blocked", "named in VU_DISABLE_PLUGINS, but not installed")


def test_a_slow_entry_point_is_shown_and_works(tmp_path):
    """In a process of its own, because what is imported once cannot be seen to be imported again."""
    (tmp_path / "sluggish.py").write_text(
        textwrap.dedent("""
            import sys, types
            sys.modules["peft"] = types.ModuleType("peft")  # stands for a slow import
            from vu_core import hookimpl

            @hookimpl
            def vu_register_weightings(register):
                register("late", "sluggish:Late", summary="late")

            class Late: pass
        """)
    )
    info = tmp_path / "sluggish-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sluggish\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vu.plugins]\nsluggish = sluggish\n")
    program = textwrap.dedent("""
        from vu_core.plugins import HEAVY, discover
        import sys
        plugins = discover()
        entry = plugins.registry.get("weighting", "late")
        shown = next(each for each in plugins.distributions if each.name == "sluggish")
        print(entry.state, "|", shown.state, "|", shown.cause, "|", entry.load().__name__)
        print([name for name in HEAVY if name in sys.modules and name != "peft"])
    """)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["slow | slow | its entry-point module imports peft | Late", "[]"]


def test_every_slow_entry_point_is_shown(tmp_path):
    """In a process of its own: the second one imports what the first has loaded already."""
    modules = {
        "first": "import numpy",
        "second": "import numpy as np",
        "third": "from numpy import ndarray",
        "fourth": "from _inside_fourth import shape",
        "light": "import json",
    }
    (tmp_path / "_inside_fourth.py").write_text("from numpy import shape\n")
    for name, line in modules.items():
        (tmp_path / f"vu_{name}.py").write_text(f"{line}\n")
        info = tmp_path / f"vu_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vu-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vu.plugins]\n{name} = vu_{name}\n")
    program = textwrap.dedent("""
        from vu_core.plugins import discover
        shown = {each.name: (each.state, each.cause) for each in discover().distributions}
        for name in ("first", "second", "third", "fourth", "light"):
            print(name, *shown[f"vu-{name}"])
    """)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    slow = [f"{name} slow its entry-point module imports numpy" for name in modules if name != "light"]
    assert [line.strip() for line in done.stdout.splitlines()] == [*slow, "light ready"]


EXITS = ["raise KeyboardInterrupt", "raise SystemExit(0)", "raise BaseException('odd')"]


@pytest.mark.parametrize("line", EXITS)
def test_a_plugin_cannot_end_the_command_when_it_is_imported(tmp_path, monkeypatch, line):
    name = f"leaver{EXITS.index(line)}"
    (tmp_path / f"{name}.py").write_text(f"{line}\n")
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vu.plugins]\nleaver = {name}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = state_of(discover(), name)
    assert shown.state == "broken"
    assert line.removeprefix("raise ").partition("(")[0] in shown.cause
    entry = Entry("metric", "leaver", f"{name}:Leaver", "Leaves.", name, "1.0")
    with pytest.raises(PluginError) as caught:
        entry.load()
    assert caught.value.code == "VU-P003"


@pytest.fixture
def listening():
    """Ctrl-C as in a terminal; a shell in the background lets its children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_user_can_end_the_command_while_a_plugin_is_imported(tmp_path, monkeypatch, listening):
    def interrupted(register):
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        found(distribution("patient", vu_register_weightings=interrupted))
    (tmp_path / "patient_target.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        Entry("metric", "patient", "patient_target:Any", "Waits.", "patient", "1.0").load()
    assert signal.getsignal(signal.SIGINT) is handler


def test_listeners_cannot_disturb_a_run(caplog):
    heard = []

    def fails(event):
        raise RuntimeError("deaf")

    plugins = found(
        distribution("deaf", vu_on_event=fails), distribution("keen", vu_on_event=lambda event: heard.append(event))
    )
    event = Event("progress", "unlearn", {"step": 1})
    with caplog.at_level(logging.WARNING, logger="vu"):
        plugins.tell(event)
    assert heard == [event]
    assert "deaf" in caplog.text


def test_a_listener_may_take_no_argument():
    calls = []
    found(distribution("terse", vu_on_event=lambda: calls.append(1))).tell(Event("note", "plan"))
    assert calls == [1]


def test_an_unknown_name_says_what_is_close_installed_and_to_be_installed():
    registry = found(distribution("guests", vu_register_weightings=brings("guest", aliases=("visitor",)))).registry
    with pytest.raises(PluginError) as caught:
        registry.get("weighting", "visitr")
    assert "Did you mean 'visitor'?" in caught.value.problem
    assert "guest" in caught.value.remedy
    assert "pip install" not in caught.value.remedy
    with pytest.raises(PluginError, match="pip install vu-fade"):
        registry.get("unlearner", "spare-sparse")
    with pytest.raises(PluginError, match="pip install vu-fade"):
        registry.get("unlearner", "fade-sprse")


def test_a_target_that_cannot_be_imported_is_found_by_the_check():
    def vu_register_weightings(register):
        register("gone", "vu_config_toys.parts:Gone", summary="gone")
        register("here", TARGET, summary="here")

    registry = found(distribution("half", vu_register_weightings=vu_register_weightings)).registry
    gone, here = (registry.get("weighting", name).checked() for name in ("gone", "here"))
    assert gone.state == "broken"
    assert "Gone" in gone.cause
    assert here == registry.get("weighting", "here")


def test_entry_points_of_every_installed_plugin_are_light_and_sound():
    plugins = discover()
    assert {each.name: each.cause for each in plugins.distributions if each.state not in ("ready",)} == {}
    assert {entry.name: entry.cause for entry in plugins.registry.entries() if entry.state != "ready"} == {}


def test_the_directory_names_kinds_that_exist_and_no_name_twice():
    directory = read_directory()
    assert set(directory) <= set(KINDS)
    assert directory["unlearner"]["fade-sparse"] == "vu-fade"
    names = [entry for entry in discover().registry.entries() if entry.distribution.startswith("vu-")]
    missing = [
        entry.name
        for entry in names
        if entry.kind not in ("recipe",) and directory.get(entry.kind, {}).get(entry.name) != entry.distribution
    ]
    assert missing == []


def test_registry_needs_no_plugins():
    toy = Entry("unlearner", "toy", "toy:Toy", "does nothing", "toys", "1.0")
    assert Registry((toy,)).get("unlearner", "toy") is toy
    assert "peft" in HEAVY
