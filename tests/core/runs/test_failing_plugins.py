"""Code of plugins that fails in the middle of a run: who did it, what stays, how to go on."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vu_core import PluginError, UnlearnError
from vu_core.config import Override, RawConfig
from vu_core.pipeline import dry_run, execute, measure_run, resume
from vu_core.plugins import Plugins, discover
from vu_core.run_folder import read_events
from vu_core.workbench import opened

Raw = Callable[..., RawConfig]
ENTRY_POINTS = [
    ("ToyNet", "load", "model 'toy-net'"),
    ("LoadedNet", "prepare", "model 'toy-net'"),
    ("ToyPoints", "build", "data 'toy-points'"),
    ("Push", "__init__", "method 'toy-push'"),
    ("Push", "unlearn", "method 'toy-push'"),
    ("Size", "attribute", "attribution 'toy-size'"),
    ("ToyPoints", "evaluation", "data 'toy-points'"),
    ("Gap", "fingerprint", "metric 'toy-gap'"),
    ("Gap", "observe", "metric 'toy-gap'"),
    ("LoadedNet", "generate", "model 'toy-net'"),
    ("Gap", "scores", "metric 'toy-gap'"),
    ("Gap", "doubts", "metric 'toy-gap'"),
]
FAILURES = [KeyError("boom"), SystemExit(0), SystemExit("bye"), BaseException("odd")]


def generate(folder: Path, prompt: str, seed: int, *, plugins: Plugins) -> tuple[Any, Any]:
    """Return the image before and after the edit of a run."""
    host: Any = SimpleNamespace(plugins=plugins)
    with opened(folder, host, lambda _: None) as bench:
        return bench.generate(prompt, seed, None), bench.generate(prompt, seed, bench.edit)


@pytest.fixture
def more(plugins: Plugins) -> Plugins:
    """The toys and a second distribution."""
    import vu_toy_axis
    import vu_toy_run.plugin as plugin

    return discover(extra=[("vu-toy-run", "1.0", plugin), ("vu-toy-axis", "2.0", vu_toy_axis)], installed=False)


def _make_fail(monkeypatch: pytest.MonkeyPatch, toys: Any, where: str, what: str, failure: BaseException) -> None:
    """Replace a method of a toy by one that fails, as if its own code did."""
    names = {"failure": failure, "__name__": toys.__name__}
    exec(f"class {where}:\n    def {what}(self, *a, **k):\n        raise failure.with_traceback(None)", names)
    monkeypatch.setattr(getattr(toys, where), what, getattr(names[where], what))


@pytest.mark.parametrize(("where", "what", "who"), ENTRY_POINTS)
def test_a_plugin_that_fails_is_named(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, where: str, what: str, who: str
) -> None:
    failure = KeyError("boom")
    _make_fail(monkeypatch, toys, where, what, failure)
    with pytest.raises(PluginError) as caught:
        execute(raw(run__out="mine"), plugins=plugins)
    error = caught.value
    assert (error.code, error.exit_status) == ("VU-P009", 3)
    assert error.problem == f"The {who} of vu-toy-run 1.0 failed: KeyError: 'boom'"
    assert error.__cause__ is failure
    won = Path("mine", "edit.safetensors").exists()
    assert Path("mine").exists() == won
    assert ("vu unlearn --resume mine" in error.remedy) == won


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_nothing_that_a_plugin_raises_ends_the_program(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    for where, what, who in ENTRY_POINTS:
        with monkeypatch.context() as patch:
            _make_fail(patch, toys, where, what, failure)
            with pytest.raises(PluginError, match=f"{who} of vu-toy-run"):
                execute(raw(), plugins=plugins)


def test_a_failing_weighting_is_named_and_the_run_goes_on_from_its_checkpoint(more: Plugins, raw: Raw) -> None:
    torn = raw(weighting__name="toy-torn", weighting__after=5, run__out="mine", run__threads=1)
    with pytest.raises(PluginError) as caught:
        execute(torn, plugins=more)
    assert caught.value.problem == "The weighting 'toy-torn' of vu-toy-axis 2.0 failed: KeyError: 'boom'"
    assert caught.value.remedy.endswith("the run goes on with `vu unlearn --resume mine`.")
    last = read_events(Path("mine"))[-1]
    assert (last["type"], last["values"]["code"], last["values"]["exit_status"]) == ("error", "VU-P009", 3)
    with pytest.raises(PluginError, match="toy-torn") as caught:
        resume(Path("mine"), plugins=more)
    assert "vu unlearn --resume mine" in caught.value.remedy
    assert [e["values"]["step"] for e in read_events(Path("mine")) if e["type"] == "resume" and "step" in e["values"]]


def test_a_weighting_that_exits_is_an_error_of_the_run(more: Plugins, raw: Raw) -> None:
    torn = raw(weighting__name="toy-torn", weighting__after=5, weighting__exits=True, run__out="mine")
    with pytest.raises(PluginError, match=r"weighting 'toy-torn' of vu-toy-axis 2\.0 failed: SystemExit: 0"):
        execute(torn, plugins=more)
    assert read_events(Path("mine"))[-1]["values"]["code"] == "VU-P009"


def test_a_base_method_is_blamed_and_not_who_wraps_it(
    more: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = raw(unlearner__method="toy-wrap", weighting__name="toy-torn")
    _make_fail(monkeypatch, toys, "Push", "unlearn", KeyError("boom"))
    with pytest.raises(PluginError, match="method 'toy-push' of vu-toy-run"):
        execute(wrapped, plugins=more)


def test_handing_nonsense_to_a_tool_of_the_core_is_the_fault_of_the_plugin(more: Plugins, raw: Raw) -> None:
    with pytest.raises(PluginError, match="method 'toy-misuse' of vu-toy-axis"):
        execute(raw(unlearner__method="toy-misuse"), plugins=more)


@pytest.mark.parametrize("nonsense", ["data", "setting", "score"])
def test_a_noun_made_wrong_is_the_fault_of_who_made_it(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, nonsense: str
) -> None:
    body = {
        "data": "examples.with_tensors({'x': __import__('torch').zeros(len(examples) + 1)})",
        "setting": "PushConfig(lr='no number', nothing=1)",
        "score": "scorecard_to_json(None)",
    }[nonsense]
    names: dict[str, Any] = {**vars(toys), "__name__": toys.__name__}
    exec("from vu_core.score import scorecard_to_json", names)
    exec(f"def prepare(self, examples, run):\n    {body}", names)
    monkeypatch.setattr(toys.LoadedNet, "prepare", names["prepare"])
    with pytest.raises(PluginError, match="model 'toy-net' of vu-toy-run"):
        execute(raw(), plugins=plugins)


def test_out_of_memory_is_told_when_a_finished_run_is_asked_again(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = execute(raw(), plugins=plugins).folder
    _make_fail(monkeypatch, toys, "Gap", "scores", MemoryError())
    _make_fail(monkeypatch, toys, "LoadedNet", "generate", MemoryError())
    for ask in (lambda: measure_run(folder, plugins=plugins), lambda: generate(folder, "a", 1, plugins=plugins)):
        with pytest.raises(UnlearnError, match="ran out of memory") as caught:
            ask()
        assert caught.value.code == "VU-U053"
        assert "batch_size" not in caught.value.remedy


def test_a_broken_metric_does_not_cost_the_training(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _make_fail(patch, toys, "Gap", "scores", KeyError("boom"))
        with pytest.raises(PluginError) as caught:
            execute(raw(run__out="my run"), plugins=plugins)
    assert "If neither the configuration nor a version has to change" in caught.value.remedy
    assert "`vu measure 'my run' --set measure.metrics=[...]`" in caught.value.remedy
    other = [Override("measure.metrics", ["toy-size-of-change"], "--set")]
    card = measure_run(Path("my run"), plugins=plugins, overrides=other)
    assert [score.name for score in card.scores] == ["changed_outputs"]


def test_a_failure_of_the_core_stays_one_and_leaves_no_folder(
    plugins: Plugins, raw: Raw, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vu_core.training.loop import _Phase

    names = {"__name__": _Phase.__module__}
    exec("def train(self):\n    raise ZeroDivisionError('ours')", names)
    monkeypatch.setattr(_Phase, "train", names["train"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        execute(raw(), plugins=plugins)
    assert not list((place / "runs").iterdir())


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize(("where", "what"), [("ToyNet", "inspect"), ("ToyPoints", "manifest"), ("ToyPoints", "parse")])
def test_a_plugin_that_fails_while_the_run_is_planned(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, where: str, what: str, failure: Any
) -> None:
    _make_fail(monkeypatch, toys, where, what, failure)
    who = {"ToyNet": "model 'toy-net'", "ToyPoints": "data 'toy-points'"}[where]
    with pytest.raises(PluginError, match=f"The {who} of vu-toy-run 1.0 failed") as caught:
        dry_run(raw(), plugins=plugins)
    assert caught.value.code == "VU-P009"


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_plugin_that_fails_when_a_finished_run_is_asked_again(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder = execute(raw(), plugins=plugins).folder
    _make_fail(monkeypatch, toys, "Gap", "scores", failure)
    _make_fail(monkeypatch, toys, "LoadedNet", "generate", failure)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(PluginError, match=r"metric 'toy-gap'|model 'toy-net'"):
        measure_run(folder, plugins=plugins)
    with pytest.raises(PluginError, match="model 'toy-net'") as caught:
        generate(folder, "a", 1, plugins=plugins)
    assert "--resume" not in caught.value.remedy
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_listener_that_exits_ends_no_run(plugins: Plugins, raw: Raw, toys: Any) -> None:
    import vu_toy_run.plugin as plugin

    from vu_core import hookimpl

    def vu_on_event(event: Any) -> None:
        sys.exit(0)

    noisy = SimpleNamespace(vu_on_event=hookimpl(vu_on_event))
    found = discover(extra=[("vu-toy-run", "1.0", plugin), ("noisy", "1.0", noisy)], installed=False)
    record = execute(raw(), plugins=found)
    logged = [json.loads(line) for line in (record.folder / "events.jsonl").read_text().splitlines()]
    assert any("noisy" in event["values"].get("message", "") for event in logged)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", ["max_minutes", "max_gb"])
def test_a_limit_is_a_positive_number(plugins: Plugins, raw: Raw, place: Path, name: str, limit: float) -> None:
    from vu_core import ConfigError

    settings: dict[str, Any] = {name: limit}
    with pytest.raises(ConfigError, match="positive number") as caught:
        execute(raw(), plugins=plugins, **settings)
    assert caught.value.code == "VU-C052"
    assert caught.value.where == "--" + name.replace("_", "-")
    assert not list(place.iterdir())
