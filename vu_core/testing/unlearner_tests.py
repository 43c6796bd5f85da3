"""Conformance of an unlearner."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch

from vu_core.adapters import Full, FullConfig, apply_edit, edit_digest, load_edit, save_edit
from vu_core.data import ForgetRetain
from vu_core.edit import Edit, LowRank, Sparse
from vu_core.event import Event
from vu_core.plugins import Plugins, discover
from vu_core.run import Run
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_methods import ToyAttribution, ToyAttributionConfig, ToyWeighting, ToyWeightingConfig
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_forget_retain, toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes, tensor_digest


@cache
def installed() -> Plugins:
    """Return the plugins that a method may name in its ``defaults``."""
    return discover()


class UnlearnerTests(PluginTests):
    """Checks of an unlearner; set ``plugin``, and ``axes`` as it is registered.

    The model is a `ToyPainter` and the data are toy images, unless `make_model` and `make_data` say otherwise: a method
    for classifiers returns a `ToyClassifier`, one for both has a test class of each. Tests that need an axis or a
    training loop are skipped for methods that have none.
    """

    axes: ClassVar[tuple[str, ...]] = ("parameters", "weighting")
    may_be_identity: ClassVar[bool] = False

    def make_model(self) -> Any:
        """Return a fresh model, the same numbers each time."""
        return ToyPainter()

    def make_data(self, run: Run) -> ForgetRetain:
        """Return training and validation examples that are prepared for the model."""
        return toy_forget_retain(run, model=self.make_model())

    def make_run(self, folder: Path, config: Any, seed: int = 0, **changes: Any) -> Run:
        """Return a run with the axes that the method wants when nothing is said."""
        run = toy_run(folder, seed, training=getattr(config, "training", None))
        defaults = getattr(self.plugin, "defaults", {})
        for kind, fallback in (("parameters", "lora"), ("weighting", "simple")):
            if kind in self.axes:
                setattr(run, kind, make_axis(kind, {"name": fallback, **defaults.get(kind, {})}))
        wanted = defaults.get("regularizer", {})
        run.regularizers = tuple(make_axis("regularizer", {"name": name, **table}) for name, table in wanted.items())
        axes = [self.axes, *(installed().registry.get("regularizer", name).axes for name in wanted)]
        if any("attribution" in honoured for honoured in axes):
            run.attribution = ToyAttribution(ToyAttributionConfig())
        run.resolve = lambda name, settings: make_axis("unlearner", {"name": name, **settings})
        for name, value in changes.items():
            setattr(run, name, value)
        return run

    def unlearn(self, folder: Path, config: Any = None, model: Any = None, **changes: Any) -> Edit:
        """Run the method once, as the stage does: whatever it attached is taken off afterwards."""
        config = self.config() if config is None else config
        run = self.make_run(folder, config, **changes)
        try:
            edit: Edit = self.plugin(config).unlearn(model or self.make_model(), self.make_data(run), run)
        finally:
            run.release()
        return edit

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the hash of the edit."""
        return edit_digest(attrs.evolve(self.unlearn(folder, config), facts={}))

    def gradient_method(self) -> bool:
        """Tell whether the method trains with `fit`."""
        return hasattr(self.config(), "training")

    def test_defaults_are_tables_of_known_axes(self) -> None:
        """``defaults`` names what the method wants of the axes that it honours."""
        defaults = self.plugin.defaults
        assert isinstance(defaults, Mapping), "defaults must be a mapping"
        unknown = set(defaults) - {"parameters", "weighting", "attribution", "regularizer"}
        assert not unknown, f"defaults for unknown axes: {unknown}"
        for kind, table in defaults.items():
            assert kind in self.axes, f"defaults for {kind!r}, an axis that the method does not honour"
            assert kind == "regularizer" or "name" in table, f"defaults[{kind!r}] names no plugin"

    def test_same_seed_same_edit(self, tmp_path: Path) -> None:
        """A run can be repeated bit for bit."""
        first, second = self.unlearn(tmp_path / "1"), self.unlearn(tmp_path / "2")
        assert edit_digest(first) == edit_digest(second), "two runs with one seed gave two edits"

    def test_other_seed_other_edit(self, tmp_path: Path) -> None:
        """The seed of the run is where the randomness of a gradient method comes from."""
        if not self.gradient_method():
            pytest.skip("not a gradient method")
        first, second = self.unlearn(tmp_path / "1", seed=1), self.unlearn(tmp_path / "2", seed=2)
        assert edit_digest(first) != edit_digest(second), "two seeds gave one edit: the run's generators are not used"

    def test_instance_can_be_used_again(self, tmp_path: Path) -> None:
        """A method keeps nothing from one run to the next."""
        config = self.config()
        method = self.plugin(config)
        edits = []
        for name in ("1", "2"):
            run = self.make_run(tmp_path / name, config)
            edits.append(method.unlearn(self.make_model(), self.make_data(run), run))
            run.release()
        assert edit_digest(edits[0]) == edit_digest(edits[1]), "the second use of an instance gave another edit"

    def test_model_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """Base weights are bit-identical, no module was swapped, no flag flipped."""
        model = self.make_model()
        before = Snapshot.of(model.network)
        self.unlearn(tmp_path, model=model)
        assert not before.differences(model.network), before.differences(model.network)

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Grad mode, generators, flags and threads of the process are left alone."""
        with nothing_global_changes():
            self.unlearn(tmp_path)

    def test_data_is_left_alone(self, tmp_path: Path) -> None:
        """Examples are shared between methods: their columns must not change."""
        config = self.config()
        run = self.make_run(tmp_path, config)
        data = self.make_data(run)
        before = [tensor_digest(table.tensors) for table in (data.forget, data.retain)]
        self.plugin(config).unlearn(self.make_model(), data, run)
        run.release()
        assert before == [tensor_digest(table.tensors) for table in (data.forget, data.retain)], "a column was changed"

    def test_edit_changes_something_finite(self, tmp_path: Path) -> None:
        """An edit without parts, without effect or with NaN is no result."""
        edit = self.unlearn(tmp_path)
        if self.may_be_identity or edit.may_be_identity:
            pytest.skip("the method may return an identity")
        assert edit.parts, "the edit has no parts"
        base = {**dict(self.make_model().network.named_parameters()), **dict(self.make_model().network.named_buffers())}
        changed = False
        for name, part in edit:
            assert name in base, f"the model has no tensor {name!r}"
            delta = part.delta() if isinstance(part, LowRank | Sparse) else part.tensor - base[name].detach()
            assert bool(torch.isfinite(delta).all()), f"the change of {name!r} is not finite"
            changed = changed or bool(delta.any())
        assert changed, "the edit changes nothing"

    def test_edit_stays_within_the_parameters(self, tmp_path: Path) -> None:
        """Only what the run's parameters may train is changed."""
        if "parameters" not in self.axes:
            pytest.skip("not an axis of the method")
        run = self.make_run(tmp_path / "look", self.config())
        allowed = set(run.candidates(self.make_model()))
        outside = set(self.unlearn(tmp_path / "run").parts) - allowed
        assert not outside, f"changed although the parameters do not name them: {sorted(outside)}"

    def test_edit_can_be_applied_and_taken_off(self, tmp_path: Path) -> None:
        """The edit is a value: put on, it is seen; taken off, the model is bit-identical."""
        edit = self.unlearn(tmp_path)
        model = self.make_model()
        before = Snapshot.of(model.network)
        usual = tensor_digest(before.contents)
        with apply_edit(model.network, edit):
            edited = tensor_digest(Snapshot.of(model.network).contents)
            assert self.may_be_identity or edited != usual, "with the edit on, the weights are those of before"
        assert not before.differences(model.network), before.differences(model.network)

    def test_edit_survives_its_file(self, tmp_path: Path) -> None:
        """What is loaded is what was saved, facts included."""
        edit = self.unlearn(tmp_path)
        save_edit(edit, tmp_path / "edit.safetensors")
        assert edit_digest(load_edit(tmp_path / "edit.safetensors")) == edit_digest(edit)

    def test_resumed_run_ends_with_the_same_edit(self, tmp_path: Path) -> None:
        """A run interrupted in the middle of training and continued equals one that was not."""
        if not self.gradient_method():
            pytest.skip("not a gradient method")
        whole = self.unlearn(tmp_path / "whole")
        for stop in (1, 2):
            folder = tmp_path / f"stopped-{stop}"
            with pytest.raises(KeyboardInterrupt):
                self.unlearn(folder, emit_event=_Interrupt(after=stop))
            events: list[Event] = []
            continued = self.unlearn(folder, resuming=True, emit_event=events.append)
            assert edit_digest(continued) == edit_digest(whole), f"interrupted at step {stop}: another edit"
            assert any(event.type == "resume" for event in events), f"interrupted at step {stop}: it started over"

    def test_honours_other_parameters(self, tmp_path: Path) -> None:
        """The axes cross freely: every method that honours ``parameters`` works with ``full``."""
        if "parameters" not in self.axes:
            pytest.skip("not an axis of the method")
        edit = self.unlearn(tmp_path, parameters=Full(FullConfig()))
        assert edit.parts, "with the parameters 'full' the edit has no parts"

    def test_says_the_sign_of_its_losses(self) -> None:
        """A weighting joins two descents; a loss that should rise is handed over with the other sign."""
        if "weighting" not in self.axes:
            pytest.skip("not an axis of the method")
        said = getattr(self.plugin, "descends", ())
        assert set(said) == {"retain", "forget"}, f'descends is {said!r}; write descends = ("retain", "forget")'

    def test_honours_other_weightings(self, tmp_path: Path) -> None:
        """The axes cross freely: one call and one backward per side work as well as both at once."""
        if "weighting" not in self.axes:
            pytest.skip("not an axis of the method")
        usual = self.unlearn(tmp_path / "usual")
        other = self.unlearn(tmp_path / "other", weighting=ToyWeighting(ToyWeightingConfig(forget_share=0.9)))
        assert edit_digest(usual) != edit_digest(other), "another weighting gave the same edit: it is not used"


class _Interrupt:
    """Presses Ctrl-C at an optimiser step."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, event: Event) -> None:
        if event.type == "progress" and any(key.startswith("loss") for key in event.values):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def make_axis(kind: str, table: Mapping[str, Any]) -> Any:
    """Return the plugin of a ``defaults`` table, such as ``{"name": "lora", "rank": 4}``."""
    plugin = installed().registry.get(kind, table["name"]).load()
    return plugin(plugin.Config(**{key: value for key, value in table.items() if key != "name"}))
