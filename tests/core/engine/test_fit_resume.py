import json
import os

import attrs
import pytest
import torch
from engine_toys import toy_data, toy_losses, toy_model, toy_run

from vu_core import RecordError, UnlearnError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.training import Training, fit

TRAINING = Training(steps=9, lr=0.02, batch_size=3, schedule="cosine", warmup_steps=2, checkpoint_every=0.0)


@attrs.define
class Counting:
    """A rule with a state that changes its coefficients."""

    linear = False

    def coefficients(self, gram, losses, state):
        state["count"] = state.get("count", 0) + 1
        return 1.0, 0.1 * state["count"]


class Drift:
    """A regularizer with a state that changes the gradient."""

    side = "outside"

    def __init__(self):
        self.prepared = 0

    def prepare(self, model, theta, data, run):
        self.prepared += 1
        self._bind(torch.tensor([0.1, 0.7]), theta)

    def _bind(self, factors, theta):
        self.factors, self.theta = factors, theta

    def penalty(self):
        return self.factors.sum() * sum((tensor**2).sum() for tensor in self.theta.parameters())

    def after_step(self, optimizer):
        self.factors = self.factors * 1.1

    def state(self):
        return {"factors": self.factors}

    def load_state(self, state, theta):
        self._bind(state["factors"], theta)


SETUPS = {
    "lora": {},
    "dropout": {"parameters": Lora(LoraConfig(rank=2, dropout=0.5, targets=("to_q", "conv")))},
    "full": {"parameters": Full(FullConfig())},
    "weighting and regularizer": {"weighting": Counting()},
    "accumulation": {"training": attrs.evolve(TRAINING, batch_size=1, accumulation=3)},
}


def go(folder, stop_at=None, stop_in="progress", resuming=False, **settings):
    """Train; interrupt at a step, either when it is told or within its losses. Returns (state, events)."""
    events = []

    def emit(event):
        events.append(event)
        if stop_in == "progress" and event.type == "progress" and event.values["step"] == stop_at:
            raise KeyboardInterrupt

    if isinstance(settings.get("weighting"), Counting):
        settings["regularizers"] = (Drift(),)
    model = toy_model()
    run = toy_run(folder, **{"training": TRAINING, "emit_event": emit, "resuming": resuming, **settings})
    theta = run.parameterise(model)
    inner = toy_losses(model)

    def losses(batches):
        if stop_in == "losses" and next(iter(batches.values())).step == stop_at:
            raise KeyboardInterrupt
        return inner(batches)

    try:
        fit(theta, losses, toy_data(), run)
    finally:
        state = {name: tensor.clone() for name, tensor in theta.state().items()}
        theta.detach()
    return state, events


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and list(a) == list(b)


@pytest.mark.parametrize("stop_in", ["progress", "losses"])
@pytest.mark.parametrize("setup", SETUPS)
def test_an_interrupted_run_ends_bitwise_as_an_uninterrupted_one(setup, stop_in, tmp_path):
    settings = SETUPS[setup]
    whole, _ = go(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop_at=4, stop_in=stop_in, **settings)
    torch.manual_seed(123)
    resumed, events = go(tmp_path / "cut", resuming=True, **settings)
    assert same(resumed, whole)
    resume = next(e for e in events if e.type == "resume")
    assert resume.values == {"phase": "main", "step": 4, "total": 9}
    assert [e.values["step"] for e in events if e.type == "progress"] == [5, 6, 7, 8, 9]


def test_an_interrupt_writes_a_checkpoint_even_if_none_is_due(tmp_path):
    training = attrs.evolve(TRAINING, checkpoint_every=1e6)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, stop_at=5, stop_in="losses", training=training)
    _, events = go(tmp_path, resuming=True, training=training)
    assert next(e for e in events if e.type == "resume").values["step"] == 5


def test_an_interrupt_within_an_update_saves_no_mixture(tmp_path):
    class Interrupt(Drift):
        calls = 0

        def after_step(self, optimizer):
            self.calls += 1
            if self.calls == 3:  # after two whole steps, so that there would be something to save
                raise KeyboardInterrupt

    training = attrs.evolve(TRAINING, checkpoint_every=1e6)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, training=training, regularizers=(Interrupt(),))
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_phase_is_skipped(tmp_path):
    whole, _ = go(tmp_path)
    again, events = go(tmp_path, resuming=True)
    assert same(again, whole)
    assert [e.type for e in events] == ["resume"]


def test_phases_are_resumed_one_by_one(tmp_path):
    def both(folder, stop=None, resuming=False):
        events = []

        def emit(event):
            events.append(event)
            if (event.type, event.values.get("what"), event.values.get("step")) == (
                "progress",
                "training (second)",
                stop,
            ):
                raise KeyboardInterrupt

        model = toy_model()
        run = toy_run(folder, training=TRAINING, resuming=resuming, emit_event=emit)
        theta = run.parameterise(model)
        fit(theta, toy_losses(model), toy_data(), run, name="first")
        middle = [tensor.detach().clone() for tensor in theta.parameters()]
        fit(theta, toy_losses(model), toy_data(), run, name="second")
        return middle, [tensor.detach().clone() for tensor in theta.parameters()], events

    first, second, _ = both(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        both(tmp_path / "cut", stop=3)
    a, b, events = both(tmp_path / "cut", resuming=True)
    assert all(map(torch.equal, a + b, first + second))
    assert not all(map(torch.equal, first, second))
    assert [(e.values["phase"], e.values["step"]) for e in events if e.type == "resume"] == [
        ("first", 9),
        ("second", 3),
    ]


def test_a_phase_name_used_twice_is_refused(tmp_path):
    go(tmp_path)
    with pytest.raises(UnlearnError) as error:
        go(tmp_path)
    assert error.value.code == "VU-U035"


def test_the_last_two_checkpoints_are_kept_and_leftovers_go(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".main-00000001.safetensors.77.tmp", "main-00000099.safetensors", "other-00000001.safetensors"):
        (folder / name).write_bytes(b"x")
    go(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "main-00000008.json",
        "main-00000008.safetensors",
        "main-00000009.json",
        "main-00000009.safetensors",
        "other-00000001.safetensors",
    ]


def test_checkpoints_are_as_often_as_asked(tmp_path):
    for seconds, expected in ((0.0, list(range(1, 10))), (1e6, [9])):
        _, events = go(tmp_path / str(seconds), training=attrs.evolve(TRAINING, checkpoint_every=seconds))
        assert [e.values["step"] for e in events if e.type == "checkpoint"] == expected


DAMAGES = {
    "torn": lambda p: p.with_suffix(".safetensors").write_bytes(p.with_suffix(".safetensors").read_bytes()[:-5]),
    "flipped": lambda p: p.with_suffix(".safetensors").write_bytes(
        p.with_suffix(".safetensors").read_bytes()[:-1] + b"\x55"
    ),
    "gone": lambda p: p.with_suffix(".safetensors").unlink(),
    "no json": lambda p: p.write_text(p.read_text()[:40]),
    "other json": lambda p: p.write_text(json.dumps({"step": 4})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(damage, tmp_path):
    whole, _ = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop_at=5)
    newest = tmp_path / "cut" / "checkpoints" / "main-00000005.json"
    DAMAGES[damage](newest)
    resumed, events = go(tmp_path / "cut", resuming=True)
    assert same(resumed, whole)
    assert [e.values["step"] for e in events if e.type == "resume"] == [4]
    assert "main-00000005.json" in next(e.values["text"] for e in events if e.type == "warning")


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    whole, _ = go(tmp_path / "whole")
    for nth in (1, 2, 3, 4):
        calls, replace = [], os.replace

        def dies(source, target, calls=calls, nth=nth, replace=replace):
            calls.append(target)
            if len(calls) == 4 + nth:
                raise SystemExit("killed")
            replace(source, target)

        folder = tmp_path / f"cut{nth}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            with pytest.raises(SystemExit):
                go(folder)
        resumed, events = go(folder, resuming=True)
        assert same(resumed, whole)
        assert next(e for e in events if e.type == "resume").values["step"] >= 2


def test_everything_damaged_starts_over_with_a_warning(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", stop_at=5)
    for path in (tmp_path / "cut" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    resumed, events = go(tmp_path / "cut", resuming=True)
    assert same(resumed, go(tmp_path / "whole")[0])
    assert sum(e.type == "warning" for e in events) == 2


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, stop_at=5)
    for changed in (
        {"training": attrs.evolve(TRAINING, steps=12)},
        {"parameters": Lora(LoraConfig(rank=3, targets=("to_q",)))},
    ):
        with pytest.raises(RecordError) as error:
            go(tmp_path, resuming=True, **changed)
        assert error.value.code == "VU-R030"
