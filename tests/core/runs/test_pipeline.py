"""One run from configuration to record, with toy plugins."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from vu_core import (
    ConfigError,
    EditError,
    Event,
    MeasureError,
    PlanError,
    PluginError,
    RecordError,
    UnlearnError,
    VuError,
)
from vu_core.adapters import load_edit
from vu_core.config import MeasureSettings, Override, RawConfig, RunSettings
from vu_core.pipeline import dry_run, execute, measure_run, read_record
from vu_core.plugins import Plugins
from vu_core.stages.guard import checksum
from vu_core.stages.load import base_method, check_device
from vu_core.stages.read import read
from vu_core.stages.record import write_further_scores
from vu_core.workbench import opened

Raw = Callable[..., RawConfig]


def generate(folder: Path, prompt: str, seed: int, *, plugins: Plugins) -> tuple[Any, Any]:
    """Return the image before and after the edit of a run."""
    host: Any = SimpleNamespace(plugins=plugins)
    with opened(folder, host, lambda _: None) as bench:
        return bench.generate(prompt, seed, None), bench.generate(prompt, seed, bench.edit)


def test_a_run_writes_everything_that_its_folder_promises(plugins: Plugins, raw: Raw, place: Path) -> None:
    record = execute(raw(), plugins=plugins)
    names = sorted(path.name for path in record.folder.iterdir())
    assert names == [
        "README.md", "edit.safetensors", "environment.json", "events.jsonl", "images", "report.html",
        "run.toml", "scores.json",
    ]  # fmt: skip
    assert record.folder == Path("runs") / record.run_id
    assert len(record.run_id) == 12
    assert record.scorecard is not None
    assert [score.name for score in record.scorecard.scores] == ["forget_size", "retain_size"]
    assert record.scorecard.status == "ok"
    forget = record.scorecard["forget_size"]
    assert forget.before is not None
    assert forget.after < 0.7 * forget.before
    assert forget.seeds == (10_000, 10_001)
    assert record.method == "toy-push"
    assert record.forget == ("sign:plus",)
    assert record.overwrite == ("sign:minus",)
    assert record.edit_facts["changed_tensors"] == 2
    assert record.edit_facts["changed_numbers"] == 64
    assert record.edit_bytes == (record.folder / "edit.safetensors").stat().st_size
    assert set(record.seconds) == {"load", "unlearn", "measure", "record"}
    assert "The overwrite was supplied." in record.notes


def test_the_edit_names_its_base_and_its_method(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    edit = load_edit(record.folder / "edit.safetensors")
    assert edit.method == "toy-push"
    assert edit.base == record.environment["base_hash"]
    assert edit.facts["base_model"] == "toy-net"


def test_the_edit_names_its_model_without_the_folders_above_it(plugins: Plugins, raw: Raw, tmp_path: Path) -> None:
    edits = []
    for above in ("one", "other"):
        (tmp_path / above / "mine").mkdir(parents=True)
        record = execute(raw(model__ref=str(tmp_path / above / "mine")), plugins=plugins)
        edits.append((record.folder / "edit.safetensors").read_bytes())
        assert record.edit_facts["base_model"] == "toy-net=mine"
    assert edits[0] == edits[1]


def test_held_out_data_does_not_exist_before_measure(plugins: Plugins, raw: Raw, toys: Any) -> None:
    built_at: list[tuple[str, list[str]]] = []

    def watch(event: Event) -> None:
        if event.type == "stage":
            built_at.append((f"{event.stage} {event.values['state']}", list(toys.ToyPoints.built)))

    execute(raw(), plugins=plugins, on_event=watch)
    seen = dict(built_at)
    assert seen["load end"] == ["train"] * len(seen["load end"])
    assert seen["unlearn end"] == seen["measure begin"] == seen["load end"]
    assert seen["measure end"] == [*seen["load end"], "held-out"]


def test_the_model_is_bit_identical_after_unlearning_and_measuring(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = toys.ToyNet.load

    def keep(self: Any, **settings: Any) -> Any:
        loaded.append(load(self, **settings))
        return loaded[-1]

    monkeypatch.setattr(toys.ToyNet, "load", keep)
    for name in ("lora", "full"):
        settings = {} if name == "lora" else {"unlearner__parameters__name": "full"}
        execute(raw(**settings), plugins=plugins)
        fresh = dict(load(toys.ToyNet("", toys.NetConfig()), device="cpu", precision="fp32").network.named_parameters())
        used = dict(loaded[-1].network.named_parameters())
        assert used.keys() == fresh.keys()
        assert all(used[key].numpy().tobytes() == fresh[key].numpy().tobytes() for key in fresh)
        assert not any(tensor.requires_grad for tensor in used.values())


def test_the_plan_and_the_folder_are_told_before_anything_is_loaded(plugins: Plugins, raw: Raw, toys: Any) -> None:
    told: list[Any] = []

    def on_plan(plan: Any, folder: Path) -> None:
        told.append((plan.run_id, folder, list(toys.ToyPoints.built)))

    record = execute(raw(), plugins=plugins, on_plan=on_plan)
    assert told == [(record.run_id, record.folder, [])]


def test_the_same_configuration_again_goes_into_the_next_folder(plugins: Plugins, raw: Raw) -> None:
    first = execute(raw(), plugins=plugins)
    second = execute(raw(), plugins=plugins)
    third = execute(raw(), plugins=plugins)
    assert second.folder == Path("runs") / f"{first.run_id}.2"
    assert third.folder == Path("runs") / f"{first.run_id}.3"
    for name in ("edit.safetensors", "scores.json", "run.toml"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_another_seed_gives_another_edit(plugins: Plugins, raw: Raw) -> None:
    edits = [execute(raw(run__seed=seed), plugins=plugins).folder / "edit.safetensors" for seed in (1, 2)]
    assert edits[0].read_bytes() != edits[1].read_bytes()


def test_out_is_the_folder_itself_and_never_overwritten(plugins: Plugins, raw: Raw, place: Path) -> None:
    (place / "mine").mkdir()
    record = execute(raw(run__out="mine"), plugins=plugins)
    assert record.folder == Path("mine")
    before = {path: path.read_bytes() for path in (place / "mine").iterdir() if path.is_file()}
    with pytest.raises(RecordError, match="holds a finished run") as caught:
        execute(raw(run__out="mine"), plugins=plugins)
    assert caught.value.code == "VU-R050"
    assert before == {path: path.read_bytes() for path in (place / "mine").iterdir() if path.is_file()}


@pytest.mark.parametrize(("content", "message"), [("note.txt", "not an empty folder"), ("run.toml", "unfinished run")])
def test_out_with_other_content_is_refused(plugins: Plugins, raw: Raw, place: Path, content: str, message: str) -> None:
    (place / "mine").mkdir()
    (place / "mine" / content).write_text("x")
    with pytest.raises(RecordError, match=message):
        execute(raw(run__out="mine"), plugins=plugins)
    assert [path.name for path in (place / "mine").iterdir()] == [content]


def test_out_that_is_a_file_is_refused(plugins: Plugins, raw: Raw, place: Path) -> None:
    (place / "mine").write_text("x")
    with pytest.raises(RecordError) as caught:
        execute(raw(run__out="mine"), plugins=plugins)
    assert caught.value.code == "VU-R050"


def test_out_with_a_name_that_the_system_refuses(plugins: Plugins, raw: Raw, place: Path) -> None:
    with pytest.raises(RecordError, match="too long") as caught:
        execute(raw(run__out="n" * 300), plugins=plugins)
    assert caught.value.code == "VU-R055"
    assert not list(place.iterdir())


def test_out_that_is_a_link_to_nothing_says_so(plugins: Plugins, raw: Raw, place: Path) -> None:
    (place / "mine").symlink_to("gone")
    with pytest.raises(RecordError, match=r"a link to 'gone', which does not exist") as caught:
        execute(raw(run__out="mine"), plugins=plugins)
    assert caught.value.code == "VU-R050"
    (place / "gone").mkdir()
    assert execute(raw(run__out="mine"), plugins=plugins).folder == Path("mine")
    assert (place / "gone" / "scores.json").exists()


def test_out_below_a_file_cannot_be_written(plugins: Plugins, raw: Raw, place: Path) -> None:
    (place / "mine").write_text("x")
    with pytest.raises(RecordError) as caught:
        execute(raw(run__out="mine/run"), plugins=plugins)
    assert caught.value.code == "VU-R055"


BAD = [
    ("toy-empty", {}, EditError, "VU-E050"),
    ("toy-identity", {"kind": "low-rank"}, EditError, "VU-E051"),
    ("toy-identity", {"kind": "sparse"}, EditError, "VU-E051"),
    ("toy-identity", {"kind": "replace"}, EditError, "VU-E051"),
    ("toy-notfinite", {}, EditError, "VU-E052"),
    ("toy-misfit", {}, EditError, "VU-E054"),
    ("toy-misfit", {"name": "unet.to_q.weight"}, EditError, "VU-E054"),
    ("toy-noedit", {}, UnlearnError, "VU-U051"),
]


@pytest.mark.parametrize(("method", "settings", "kind", "code"), BAD)
def test_bad_edits_are_errors_and_leave_no_folder(
    plugins: Plugins, raw: Raw, place: Path, method: str, settings: dict[str, Any], kind: type[VuError], code: str
) -> None:
    values = {f"unlearner__{name}": value for name, value in settings.items()}
    with pytest.raises(kind) as caught:
        execute(raw(unlearner__method=method, **values), plugins=plugins)
    assert caught.value.code == code
    assert not list((place / "runs").iterdir())


def test_an_identity_may_be_declared(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(unlearner__method="toy-identity", unlearner__allowed=True), plugins=plugins)
    assert record.scorecard is not None
    assert record.scorecard["forget_size"].change == 0.0
    assert record.scorecard.status == "not_forgotten"


TRACES = [
    "weight",
    "requires_grad",
    "mode",
    "module",
    "buffer",
    "grad",
    "rng",
    "python",
    "numpy",
    "deterministic",
    "dtype",
]


@pytest.mark.parametrize("trace", TRACES)
def test_a_method_that_leaves_traces_is_named(plugins: Plugins, raw: Raw, trace: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UnlearnError, match="toy-dirty") as caught:
        execute(raw(unlearner__method="toy-dirty", unlearner__trace=trace), plugins=plugins)
    assert caught.value.code == "VU-U050"
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_a_method_that_cleans_up_is_not_blamed(plugins: Plugins, raw: Raw) -> None:
    assert execute(raw(unlearner__method="toy-dirty", unlearner__trace="none"), plugins=plugins).scorecard


def test_a_checksum_sees_what_simple_sums_miss() -> None:
    weights = torch.randn(1024, 1024)
    seen = {
        checksum(tensor) for tensor in (weights, 2 * weights, -weights, weights + 1e-7, weights.half(), weights[1:])
    }
    assert len(seen) == 6
    assert checksum(weights) == checksum(weights.clone())
    assert checksum(weights.t()) == checksum(weights.t().contiguous())
    assert checksum(torch.zeros(0)) != checksum(torch.zeros(1))
    for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.complex64, torch.float64):
        tensor = torch.ones(3, dtype=dtype)
        changed = tensor.clone()
        changed[1] = 0
        assert checksum(tensor) != checksum(changed)


def _too_large() -> None:
    torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError, UnlearnError),
        (MemoryError, UnlearnError),
        (_too_large, UnlearnError),
        (ZeroDivisionError, PluginError),
    ],
)
def test_whatever_goes_wrong_inside_a_method_has_a_code_and_leaves_no_folder(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch, error: Any, expected: Any
) -> None:
    def fail(*arguments: Any) -> None:
        raise error("no") if isinstance(error, type) else error()

    monkeypatch.setattr(toys.Push, "unlearn", fail)
    with pytest.raises(expected):
        execute(raw(), plugins=plugins)
    folder = next(iter(Path("runs").iterdir()), None)
    assert folder is None, "nothing was won"


def test_strict_is_raised_after_everything_is_recorded(plugins: Plugins, raw: Raw, place: Path) -> None:
    config = raw(unlearner__method="toy-identity", unlearner__allowed=True, run__out="strict")
    with pytest.raises(UnlearnError) as caught:
        execute(config, plugins=plugins, strict=True)
    assert (caught.value.code, caught.value.exit_status) == ("VU-U052", 6)
    record = read_record(place / "strict")
    assert record.scorecard is not None
    assert record.scorecard.status == "not_forgotten"
    assert "README.md" in record.files
    assert not (place / "strict" / ".lock").exists()


def test_a_metric_that_gives_nan_is_an_error_and_the_run_can_go_on(plugins: Plugins, raw: Raw, place: Path) -> None:
    with pytest.raises(MeasureError) as caught:
        execute(raw(measure__metrics=["toy-nan"], run__out="nan"), plugins=plugins)
    assert caught.value.code == "VU-S050"
    assert (place / "nan" / "edit.safetensors").exists()
    assert not (place / "nan" / "scores.json").exists()


def test_before_is_measured_once_per_content(plugins: Plugins, raw: Raw, toys: Any) -> None:
    first = execute(raw(), plugins=plugins)
    assert toys.Gap.calls == ["before", "after"]
    second = execute(raw(run__seed=4), plugins=plugins)
    assert toys.Gap.calls == ["before", "after", "after"]
    assert first.scorecard is not None
    assert second.scorecard is not None
    assert first.scorecard["forget_size"].before == second.scorecard["forget_size"].before
    for changed in ({"measure__seeds": 3}, {"measure__split": "validation"}, {"model__seed": 1}, {"measure__steps": 3}):
        toys.Gap.calls.clear()
        execute(raw(**changed), plugins=plugins)
        assert toys.Gap.calls == ["before", "after"], changed


def test_before_belongs_to_the_settings_of_the_model(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = toys.ToyNet.inspect
    monkeypatch.setattr(toys.ToyNet, "inspect", lambda self: attrs.evolve(inspect(self), base_hash="0" * 64))
    for seed in (0, 1):
        toys.Gap.calls.clear()
        execute(raw(model__seed=seed), plugins=plugins)
        assert toys.Gap.calls == ["before", "after"], "what another setting showed was taken for this one's"


def test_a_cache_that_cannot_be_written_is_a_warning(
    plugins: Plugins, raw: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = execute(raw(), plugins=plugins)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "file"))
    record = execute(raw(), plugins=plugins)
    assert [warning for warning in record.warnings if "cache cannot be written" in warning]
    assert record.scorecard == usual.scorecard


def test_attribution_comes_from_the_cache_when_nothing_changed(plugins: Plugins, raw: Raw, toys: Any) -> None:
    first = execute(raw(), plugins=plugins)
    again = execute(raw(unlearner__training__lr=0.01), plugins=plugins)
    assert len(toys.Size.calls) == 1
    assert any("cache" in note for note in again.notes)
    assert not any("toy-size" in note for note in first.notes)
    for changed in ({"run__seed": 5}, {"data__rows": 5}, {"model__seed": 1}, {"unlearner__attribution__power": 2.0}):
        toys.Size.calls.clear()
        execute(raw(**changed), plugins=plugins)
        assert len(toys.Size.calls) == 1, changed


def test_a_cached_attribution_gives_the_same_edit(plugins: Plugins, raw: Raw, monkeypatch: Any, tmp_path: Path) -> None:
    cold = execute(raw(), plugins=plugins)
    warm = execute(raw(), plugins=plugins)
    assert (cold.folder / "edit.safetensors").read_bytes() == (warm.folder / "edit.safetensors").read_bytes()


def test_run_toml_repeats_the_run_in_a_new_process_with_an_empty_cache(
    plugins: Plugins, raw: Raw, place: Path, process: Any, tmp_path: Path
) -> None:
    first = execute(raw(run__threads=1), plugins=plugins)
    code = """
import sys
from pathlib import Path
from vu_core.config import Override
from vu_core.pipeline import execute
from vu_core.plugins import discover
from vu_core.stages.read import read
raw = read(Path(sys.argv[1]), [Override("run.out", sys.argv[2], "--out")])
print(execute(raw, plugins=discover()).run_id)
"""
    done = process(code, str(first.folder / "run.toml"), "elsewhere", VU_CACHE=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == first.run_id
    for name in ("edit.safetensors", "scores.json", "images/0-after.png"):
        assert (place / "elsewhere" / name).read_bytes() == (first.folder / name).read_bytes(), name


def test_measure_again_with_more_seeds_writes_beside(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    before = {path.name: path.read_bytes() for path in record.folder.iterdir() if path.is_file()}
    more = [Override("measure.seeds", 5, "--set")]
    events: list[Event] = []
    card = measure_run(record.folder, plugins=plugins, overrides=more, on_event=events.append)
    assert card["forget_size"].n == 5
    again = measure_run(record.folder, plugins=plugins, overrides=more, on_event=events.append)
    assert again == card
    written = [event.values["file"] for event in events if event.type == "written"]
    assert written == ["scores-held-out-5.json", "scores-held-out-5.2.json"]
    after = {path.name: path.read_bytes() for path in record.folder.iterdir() if path.is_file()}
    assert set(after) - set(before) == {"scores-held-out-5.json", "scores-held-out-5.2.json"}
    assert {name: after[name] for name in before} == before
    same = measure_run(record.folder, plugins=plugins)
    assert same == record.scorecard


def test_measure_again_warns_when_the_data_has_changed(plugins: Plugins, raw: Raw) -> None:
    folder = execute(raw(), plugins=plugins).folder

    def warnings() -> list[str]:
        events: list[Event] = []
        measure_run(folder, plugins=plugins, on_event=events.append)
        return [event.values["text"] for event in events if event.type == "warning"]

    assert warnings() == []
    path = folder / "environment.json"
    then = json.loads(path.read_text())
    then["data"]["digest"] = "0"
    path.write_text(json.dumps(then))
    assert len(warnings()) == 1


def test_two_that_measure_at_once_get_two_files(plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    record = execute(raw(), plugins=plugins)
    assert record.scorecard is not None
    first = write_further_scores(record.folder, record.scorecard, 2)
    with monkeypatch.context() as patch:  # the other process writes between the look and the writing
        patch.setattr(Path, "exists", lambda self, **options: False)
        second = write_further_scores(record.folder, record.scorecard, 2)
    assert [first.name, second.name] == ["scores-held-out-2.json", "scores-held-out-2.2.json"]
    assert first.read_bytes() == second.read_bytes() == (record.folder / "scores.json").read_bytes()


def test_scores_that_cannot_be_written_leave_no_empty_file(
    plugins: Plugins, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = execute(raw(), plugins=plugins)
    assert record.scorecard is not None

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("vu_core.stages.record.write_bytes", full)
    with pytest.raises(RecordError, match=r"scores-held-out-2\.json"):
        write_further_scores(record.folder, record.scorecard, 2)
    assert not list(record.folder.glob("scores-*"))


@pytest.mark.parametrize("action", [measure_run, lambda folder, plugins: generate(folder, "a", 1, plugins=plugins)])
def test_a_run_whose_configuration_was_edited_is_not_passed_off_as_it_was(
    plugins: Plugins, raw: Raw, action: Any
) -> None:
    folder = execute(raw(), plugins=plugins).folder
    path = folder / "run.toml"
    text = path.read_text()
    edited = text.replace("lr = 0.05", "lr = 0.5").replace("rank = 2", "rank = 3").replace("seeds = 2", "seeds = 3")
    path.write_text(edited)
    with pytest.raises(RecordError, match=r"\(unlearner\.training\.lr, unlearner\.parameters\.rank\)") as caught:
        action(folder, plugins=plugins)
    assert caught.value.code == "VU-R053"
    path.write_text(text.replace("seeds = 2", "seeds = 3"))
    action(folder, plugins=plugins)


def test_measure_again_changes_nothing_but_measuring(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    with pytest.raises(ConfigError) as caught:
        measure_run(record.folder, plugins=plugins, overrides=[Override("run.seed", 5, "--set")])
    assert caught.value.code == "VU-C050"


def test_generate_shows_before_and_after_from_the_same_noise(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(), plugins=plugins)
    before, after = generate(record.folder, "forget", 7, plugins=plugins)
    assert before.shape == after.shape == (8, 8, 3)
    assert before.dtype == np.uint8
    assert not np.array_equal(before, after)
    again, _ = generate(record.folder, "forget", 7, plugins=plugins)
    assert np.array_equal(before, again)


@pytest.mark.parametrize("action", [measure_run, lambda folder, plugins: generate(folder, "a", 1, plugins=plugins)])
def test_what_needs_an_edit_says_so(plugins: Plugins, place: Path, action: Any) -> None:
    with pytest.raises(RecordError) as caught:
        action(place / "nowhere", plugins=plugins)
    assert caught.value.code == "VU-R052"
    (place / "begun").mkdir()
    (place / "begun" / "run.toml").write_text("[run]\nseed = 1\n")
    with pytest.raises(RecordError, match="no edit yet"):
        action(place / "begun", plugins=plugins)


def test_dry_run_reads_no_weights_and_writes_nothing(plugins: Plugins, raw: Raw, place: Path, toys: Any) -> None:
    plan = dry_run(raw(), plugins=plugins)
    assert plan.selection.concepts[0].text == "sign:plus"
    assert not toys.ToyPoints.built
    assert not list(place.iterdir())


def test_a_refused_budget_writes_nothing(plugins: Plugins, raw: Raw, place: Path) -> None:
    with pytest.raises(PlanError):
        execute(raw(), plugins=plugins, max_minutes=1e-9)
    assert not list(place.iterdir())


def test_a_device_that_is_not_there(plugins: Plugins, raw: Raw, place: Path) -> None:
    with pytest.raises(PlanError, match=r"cuda:99") as caught:
        execute(raw(run__device="cuda:99"), plugins=plugins)
    assert caught.value.code == "VU-L050"
    with pytest.raises(PlanError, match=r"cuda:99"):
        dry_run(raw(run__device="cuda:99"), plugins=plugins)
    assert not list(place.iterdir())
    check_device("cpu")


def test_threads_are_those_of_the_run_and_put_back(plugins: Plugins, raw: Raw) -> None:
    before = torch.get_num_threads()
    record = execute(raw(run__threads=1), plugins=plugins)
    assert record.environment["threads"] == 1
    assert torch.get_num_threads() == before


def test_events_are_in_order_and_scores_are_told(plugins: Plugins, raw: Raw) -> None:
    events: list[Event] = []
    record = execute(raw(), plugins=plugins, on_event=events.append)
    stages = [(e.stage, e.values["state"]) for e in events if e.type == "stage"]
    names = ["load", "unlearn", "measure", "record"]
    assert stages == [(name, state) for name in names for state in ("begin", "end")]
    assert [e.values["name"] for e in events if e.type == "score"] == ["forget_size", "retain_size"]
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [entry["type"] for entry in kept if entry["type"] != "progress"] == [
        e.type for e in events if e.durable and e.type != "progress"
    ]


def test_a_base_method_is_found_by_name(plugins: Plugins, toys: Any) -> None:
    method = base_method(plugins, "toy-push", {"training": {"steps": 3}})
    assert isinstance(method, toys.Push)
    assert method.config.training.steps == 3
    with pytest.raises(ConfigError) as caught:
        base_method(plugins, "toy-push", {"learning": 3})
    assert caught.value.code == "VU-C051"


def test_validation_seeds_come_before_held_out_seeds(plugins: Plugins, raw: Raw) -> None:
    card = execute(raw(measure__split="validation"), plugins=plugins).scorecard
    assert card is not None
    assert card.split == "validation"
    assert card["forget_size"].seeds == (0, 1)


def test_not_forgotten_outweighs_retain_collapsed(
    plugins: Plugins, raw: Raw, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = [("retain_collapsed", "Lost."), ("not_forgotten", "Kept.")]
    monkeypatch.setattr(toys.Gap, "doubts", lambda self, scores: doubts)
    card = execute(raw(), plugins=plugins).scorecard
    assert card is not None
    assert (card.status, card.reasons) == ("not_forgotten", ("Lost.", "Kept."))
    monkeypatch.setattr(toys.Gap, "doubts", lambda self, scores: doubts[:1])
    card = execute(raw(), plugins=plugins).scorecard
    assert card is not None
    assert card.status == "retain_collapsed"


FIELDS = {
    "run__seed": (4, "edit.safetensors"),
    "run__task": (1, "edit.safetensors"),
    "run__precision": ("bf16", "before"),
    "run__threads": (1, "threads"),
    "measure__split": ("validation", "scores.json"),
    "measure__metrics": (["toy-size-of-change"], "scores.json"),
    "measure__seeds": (3, "scores.json"),
    "measure__samples": (2, "images"),
    "measure__steps": (5, "scores.json"),
    "measure__guidance": (3.0, "scores.json"),
}


def test_every_field_of_run_and_measure_is_in_the_table() -> None:
    named = {f"run__{field.name}" for field in attrs.fields(RunSettings)}
    named |= {f"measure__{field.name}" for field in attrs.fields(MeasureSettings)}
    # The folder, the device and the reference have tests of their own.
    assert named - {"run__out", "run__device", "measure__reference"} == set(FIELDS)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_run_and_measure_changes_something(plugins: Plugins, raw: Raw, field: str) -> None:
    value, where = FIELDS[field]
    threads = {} if field == "run__threads" else {"run__threads": 2}
    base = execute(raw(**{"run__threads": 2, **threads}), plugins=plugins)
    changed = execute(raw(**{**threads, field: value}), plugins=plugins)
    assert _seen(changed.folder, where) != _seen(base.folder, where)
    assert changed.run_id != base.run_id


def _seen(folder: Path, where: str) -> Any:
    """Return what a field should change: a file, the names in a folder, numbers, or a fact of ``environment.json``.

    Not the whole of that file or of the report: they hold the run's id, which differs anyway.
    """
    if where == "images":
        return sorted(path.name for path in (folder / where).iterdir())
    if where == "before":  # of the untouched model: what no setting of the method reaches
        return [score["before"] for score in json.loads((folder / "scores.json").read_text())["scores"]]
    if "." in where:
        return (folder / where).read_bytes()
    return json.loads((folder / "environment.json").read_text())[where]


def test_a_run_without_images(plugins: Plugins, raw: Raw) -> None:
    record = execute(raw(measure__samples=0), plugins=plugins)
    assert not (record.folder / "images").exists()
    assert "<img" not in (record.folder / "report.html").read_text()


def test_reading_a_configuration_file_keeps_its_lines(plugins: Plugins, place: Path) -> None:
    (place / "my.toml").write_text('[run]\nseed = 5\n[unlearner]\nmethod = "toy-push"\n')
    record = execute(read(place / "my.toml", ()), plugins=plugins)
    assert "my.toml:2" in (record.folder / "run.toml").read_text()
    assert "my.toml:2" in (record.folder / "report.html").read_text()
