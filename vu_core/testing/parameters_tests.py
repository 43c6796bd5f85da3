"""Conformance of a kind of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from vu_core.adapters import apply_edit, edit_digest
from vu_core.contracts.parameters import Theta
from vu_core.errors import VuError
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes


class ParametersTests(PluginTests):
    """Checks of a kind of parameters; set ``plugin``, and ``honours_masks`` if it does."""

    honours_masks: ClassVar[bool] = False
    exact_at_start: ClassVar[bool] = True
    """An adapter beside frozen weights changes no bit at the start. Trained copies of the weights themselves may differ
    in the last bits, because torch chooses other matrix products for weights that require gradients."""

    def make_model(self) -> Any:
        """Return a fresh model, the same numbers each time."""
        return ToyPainter()

    def attach(self, model: Any, folder: Path, config: Any = None, **limits: Any) -> Theta:
        """Attach to the model."""
        theta: Theta = self.plugin(self.config() if config is None else config).attach(model, toy_run(folder), **limits)
        return theta

    def answer(self, model: Any) -> torch.Tensor:
        """Return what the model predicts for a fixed input."""
        z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        prediction: torch.Tensor = model.predict(z, torch.tensor([3, 60]), model.embed(["a red dot", "a blue bar"]))
        return prediction

    def train(self, model: Any, theta: Theta, steps: int = 3) -> None:
        """Take some steps of gradient descent towards zero predictions."""
        optimizer = torch.optim.SGD(theta.parameters(), lr=0.5)
        for step in range(steps):
            optimizer.zero_grad()
            for within in theta.passes(step):
                with within:
                    torch.autograd.backward(self.answer(model).square().mean())
            optimizer.step()

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the hash of the edit after some steps."""
        model = self.make_model()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theta = self.attach(model, folder, config)
            self.train(model, theta)
        edit = theta.edit()
        theta.detach()
        return edit_digest(edit)

    def test_candidates_are_weights_of_the_model(self, tmp_path: Path) -> None:
        """Candidates exist, are named once, and stay the same."""
        model = self.make_model()
        names = self.make().candidates(model)
        assert names, "no candidates"
        assert len(set(names)) == len(names), "a candidate is named twice"
        assert names == self.make().candidates(model), "asked twice, the candidates differ"
        unknown = set(names) - set(dict(model.network.named_parameters()))
        assert not unknown, f"the model has no {sorted(unknown)}"

    def test_untouched_adapter_changes_nothing(self, tmp_path: Path) -> None:
        """Before the first step the model answers as before: retain losses start at exactly zero."""
        model = self.make_model()
        before = self.answer(model)
        theta = self.attach(model, tmp_path)
        error = (self.answer(model) - before).abs().max().item()
        assert error <= (0.0 if self.exact_at_start else 1e-5), f"attaching alone changes the answers by {error:.2g}"
        assert all(not bool(delta.any()) for _, delta in theta.named_deltas()), "a change is not zero at the start"

    def test_base_is_the_untouched_model(self, tmp_path: Path) -> None:
        """Inside `base` the model computes as if untouched, nested too, and goes back, also after an error."""
        model = self.make_model()
        before = self.answer(model).detach()
        theta = self.attach(model, tmp_path)
        self.train(model, theta)
        trained = self.answer(model).detach()
        flags = [parameter.requires_grad for parameter in theta.parameters()]
        assert not torch.equal(trained, before), "training changed nothing"
        with theta.base():
            with theta.base():
                assert torch.equal(self.answer(model), before), "inside base the model is not the untouched one"
            assert torch.equal(self.answer(model), before), "after a nested base the outer one has ended"
        with pytest.raises(RuntimeError), theta.base():
            raise RuntimeError
        assert torch.equal(self.answer(model), trained), "after base the change is gone"
        assert flags == [parameter.requires_grad for parameter in theta.parameters()], "base flips requires_grad"

    def test_parameters_are_stable_trainable_leaves(self, tmp_path: Path) -> None:
        """The optimizer holds the very tensors that the model computes with."""
        theta = self.attach(self.make_model(), tmp_path)
        first, second = theta.parameters(), theta.parameters()
        assert first, "nothing to train"
        assert [id(p) for p in first] == [id(p) for p in second], "parameters() returns other tensors the second time"
        assert all(p.requires_grad and p.is_leaf for p in first), "a parameter is no trainable leaf"
        assert [id(p) for _, p in theta.named_parameters()] == [id(p) for p in first], "named_parameters differs"
        grouped = [id(p) for tensors in theta.groups().values() for p in tensors]
        assert sorted(grouped) == sorted(map(id, first)), "groups() is not a partition of parameters()"

    def test_deltas_are_differentiable(self, tmp_path: Path) -> None:
        """Penalties are made of `named_deltas`: names of base weights, their shapes, gradients."""
        model = self.make_model()
        shapes = {name: weight.shape for name, weight in model.network.named_parameters()}
        theta = self.attach(model, tmp_path)
        self.train(model, theta, steps=1)
        deltas = dict(theta.named_deltas())
        assert deltas, "no deltas"
        for name, delta in deltas.items():
            assert delta.shape == shapes[name], f"{name}: delta has the shape {tuple(delta.shape)}"
        theta_gradients = torch.autograd.grad(
            torch.stack([delta.square().sum() for delta in deltas.values()]).sum(),
            theta.parameters(),
            allow_unused=True,
        )
        assert any(gradient is not None and bool(gradient.any()) for gradient in theta_gradients), "no gradient"

    def test_edit_is_what_was_trained(self, tmp_path: Path) -> None:
        """Applied to the untouched model, the edit gives the trained answers; only candidates are in it."""
        model = self.make_model()
        theta = self.attach(model, tmp_path)
        self.train(model, theta)
        trained = self.answer(model).detach()
        edit = theta.edit()
        theta.detach()
        fresh = self.make_model()
        outside = set(edit.parts) - set(self.make().candidates(fresh))
        assert not outside, f"the edit changes {sorted(outside)}, which are no candidates"
        with apply_edit(fresh.network, edit):
            difference = (self.answer(fresh) - trained).abs().max()
        assert float(difference) < 1e-5, f"the edit differs from the trained model by {float(difference):.2g}"

    def test_edit_is_a_copy(self, tmp_path: Path) -> None:
        """Training on changes no edit that was taken before."""
        model = self.make_model()
        theta = self.attach(model, tmp_path)
        self.train(model, theta, steps=1)
        edit = theta.edit()
        before = edit_digest(edit)
        self.train(model, theta, steps=2)
        assert edit_digest(edit) == before, "the edit changed with further training"

    def test_detach_gives_the_model_back(self, tmp_path: Path) -> None:
        """After training and `detach` the model has its very own tensors, bit-identical; twice is once."""
        model = self.make_model()
        before = Snapshot.of(model.network)
        theta = self.attach(model, tmp_path)
        self.train(model, theta)
        theta.detach()
        theta.detach()
        assert not before.differences(model.network), before.differences(model.network)

    def test_state_can_be_put_back(self, tmp_path: Path) -> None:
        """Checkpoints: state, put into a fresh attachment, gives the same answers and the same edit."""
        model = self.make_model()
        theta = self.attach(model, tmp_path / "1")
        self.train(model, theta)
        saved = {name: tensor.clone() for name, tensor in theta.state().items()}
        other = self.make_model()
        again = self.attach(other, tmp_path / "2")
        again.load_state(saved)
        assert torch.equal(self.answer(model), self.answer(other)), "another model after load_state"
        assert edit_digest(again.edit()) == edit_digest(theta.edit()), "another edit after load_state"

    def test_targets_limit_what_is_trained(self, tmp_path: Path) -> None:
        """Of the candidates only ``targets`` change."""
        model = self.make_model()
        wanted = self.make().candidates(model)[:1]
        theta = self.attach(model, tmp_path, targets=wanted)
        self.train(model, theta)
        assert set(theta.edit().parts) <= set(wanted), f"asked for {wanted}, changed {sorted(theta.edit().parts)}"

    def test_masks_limit_the_change(self, tmp_path: Path) -> None:
        """Outside of a mask the change is exactly zero; parameters that cannot honour masks refuse them."""
        model = self.make_model()
        name = self.make().candidates(model)[0]
        weight = dict(model.network.named_parameters())[name]
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask.view(-1)[::3] = True
        if not self.honours_masks:
            with pytest.raises(VuError):
                self.attach(model, tmp_path, masks={name: mask})
            return
        theta = self.attach(model, tmp_path, targets=[name], masks={name: mask})
        self.train(model, theta)
        delta = dict(theta.named_deltas())[name]
        assert bool(delta.any()), "nothing changed inside of the mask"
        assert not bool(delta[~mask].any()), "something changed outside of the mask"

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Grad mode, generators and flags of the process are left alone."""
        with nothing_global_changes():
            theta = self.attach(self.make_model(), tmp_path)
            with theta.base():
                pass
            theta.edit()
            theta.detach()
