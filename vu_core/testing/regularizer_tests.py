"""Conformance of a regularizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vu_core.adapters import Full, FullConfig, edit_digest
from vu_core.contracts.parameters import Theta
from vu_core.data import ForgetRetain
from vu_core.run import Run
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_methods import ToyAttribution, ToyAttributionConfig
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_forget_retain, toy_run
from vu_core.testing.watching import nothing_global_changes, tensor_digest


class RegularizerTests(PluginTests):
    """Checks of a regularizer; set ``plugin``. It is attached to all weights of a `ToyPainter`."""

    def make_model(self) -> Any:
        """Return a fresh model, the same numbers each time."""
        return ToyPainter()

    def make_data(self, run: Run) -> ForgetRetain:
        """Return examples that are prepared for the model."""
        return toy_forget_retain(run)

    def attach(self, folder: Path) -> tuple[Any, Theta, Run]:
        """Return a model, everything of it made trainable, and the run."""
        run = toy_run(folder, attribution=ToyAttribution(ToyAttributionConfig()))
        model = self.make_model()
        return model, Full(FullConfig()).attach(model, run), run

    def prepared(self, folder: Path, config: Any = None) -> tuple[Any, Theta, Any]:
        """Return the regularizer after it looked at the untouched model, the parameters and the model."""
        model, theta, run = self.attach(folder)
        regularizer = self.plugin(self.config() if config is None else config)
        with theta.base():
            regularizer.prepare(model, theta, self.make_data(run), run)
        return regularizer, theta, model

    def step(self, regularizer: Any, theta: Theta) -> torch.Tensor | None:
        """Move every parameter, then take one step with the penalty; return the penalty before the step."""
        with torch.no_grad():
            for parameter in theta.parameters():
                parameter.add_(0.1)
        optimizer = torch.optim.SGD(theta.parameters(), lr=0.1)
        penalty: torch.Tensor | None = regularizer.penalty()
        if penalty is not None:
            torch.autograd.backward(penalty)
        optimizer.step()
        regularizer.after_step(optimizer)
        return penalty

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the penalty of a changed model and what one step makes of it."""
        regularizer, theta, _ = self.prepared(folder, config)
        penalty = self.step(regularizer, theta)
        return (None if penalty is None else penalty.item(), edit_digest(theta.edit()))

    def test_side_is_known(self) -> None:
        """``side`` says where the penalty joins."""
        assert self.plugin.side in ("retain", "forget", "outside"), f"unknown side {self.plugin.side!r}"

    def test_penalty_is_a_finite_scalar(self, tmp_path: Path) -> None:
        """A penalty is None or one finite number that carries a gradient to the parameters."""
        regularizer, theta, _ = self.prepared(tmp_path)
        with torch.no_grad():
            for parameter in theta.parameters():
                parameter.add_(0.1)
        penalty = regularizer.penalty()
        if penalty is None:
            pytest.skip("a projection, no penalty")
        assert penalty.dim() == 0, f"the penalty has the shape {tuple(penalty.shape)}"
        assert bool(torch.isfinite(penalty)), "the penalty is not finite"
        gradients = torch.autograd.grad(penalty, theta.parameters(), allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients), "the penalty has no gradient"

    def test_it_does_something(self, tmp_path: Path) -> None:
        """With it, one step from the same place ends elsewhere than without."""
        regularizer, theta, _ = self.prepared(tmp_path / "with")
        self.step(regularizer, theta)
        _, plain, _ = self.attach(tmp_path / "without")
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(0.1)
        assert edit_digest(theta.edit()) != edit_digest(plain.edit()), "neither penalty nor after_step change anything"

    def test_state_replaces_prepare(self, tmp_path: Path) -> None:
        """On resume `load_state` is called and `prepare` is not: the next step is the same."""
        regularizer, theta, _ = self.prepared(tmp_path / "1")
        saved = {name: tensor.clone() for name, tensor in regularizer.state().items()}
        first = self.step(regularizer, theta)
        _, other, _ = self.attach(tmp_path / "2")
        again = self.make()
        again.load_state(saved, other)
        second = self.step(again, other)
        assert (first is None) == (second is None), "a penalty before, none after resuming"
        assert first is None or second is None or torch.equal(first, second), "another penalty after resuming"
        assert edit_digest(theta.edit()) == edit_digest(other.edit()), "another step after resuming"

    def test_prepare_leaves_the_model_alone(self, tmp_path: Path) -> None:
        """The untouched model is looked at, not changed."""
        model, theta, run = self.attach(tmp_path)
        trained = tensor_digest(theta.state())
        with theta.base():
            before = tensor_digest(dict(model.network.named_parameters()))
            self.make().prepare(model, theta, self.make_data(run), run)
            after = tensor_digest(dict(model.network.named_parameters()))
        assert after == before, "prepare changed a weight"
        assert tensor_digest(theta.state()) == trained, "prepare changed what is trained"
        assert all(parameter.requires_grad for parameter in theta.parameters()), "prepare froze a parameter"

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Grad mode, generators and flags of the process are left alone."""
        with nothing_global_changes():
            regularizer, theta, _ = self.prepared(tmp_path)
            self.step(regularizer, theta)
