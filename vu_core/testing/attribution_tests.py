"""Conformance of an attribution."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vu_core.data import ForgetRetain
from vu_core.run import Run
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toy_painter import ToyPainter
from vu_core.testing.toys import toy_forget_retain, toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes, tensor_digest


class AttributionTests(PluginTests):
    """Checks of an attribution; set ``plugin``. Toy model and toy data unless told otherwise."""

    def make_model(self) -> Any:
        """Return a fresh model, the same numbers each time."""
        return ToyPainter()

    def make_data(self, run: Run) -> ForgetRetain:
        """Return examples that are prepared for the model."""
        return toy_forget_retain(run)

    def attribute(
        self,
        folder: Path,
        config: Any = None,
        model: Any = None,
        candidates: Collection[str] | None = None,
        seed: int = 0,
    ) -> Mapping[str, Tensor]:
        """Run the attribution once."""
        run = toy_run(folder, seed)
        attribution = self.plugin(self.config() if config is None else config)
        found: Mapping[str, Tensor] = attribution.attribute(
            model or self.make_model(), self.make_data(run), run, candidates=candidates
        )
        return found

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the hash of all scores."""
        return tensor_digest(self.attribute(folder, config))

    def candidates(self) -> list[str]:
        """Return two weights to ask for."""
        names = [name for name, weight in self.make_model().network["unet"].named_parameters() if weight.dim() > 1]
        return [f"unet.{name}" for name in names[:2]]

    def test_scores_have_the_shape_of_their_parameters(self, tmp_path: Path) -> None:
        """One finite float32 tensor per parameter, in its shape."""
        parameters = dict(self.make_model().network.named_parameters())
        found = self.attribute(tmp_path)
        assert found, "no scores"
        for name, scores in found.items():
            assert name in parameters, f"the model has no parameter {name!r}"
            assert scores.shape == parameters[name].shape, f"{name}: scores {tuple(scores.shape)}"
            assert scores.dtype == torch.float32, f"{name}: scores are {scores.dtype}"
            assert bool(torch.isfinite(scores).all()), f"{name}: scores are not finite"
            assert not scores.requires_grad, f"{name}: scores carry a gradient"

    def test_only_candidates_are_scored(self, tmp_path: Path) -> None:
        """With candidates, exactly they are scored."""
        wanted = self.candidates()
        found = self.attribute(tmp_path, candidates=wanted)
        assert set(found) == set(wanted), f"asked for {wanted}, got {sorted(found)}"

    def test_candidates_do_not_change_the_scores(self, tmp_path: Path) -> None:
        """A parameter has one score, whoever else is asked for; otherwise the cache would lie."""
        alone = self.attribute(tmp_path / "1", candidates=self.candidates()[:1])
        both = self.attribute(tmp_path / "2", candidates=self.candidates())
        for name, scores in alone.items():
            assert torch.equal(scores, both[name]), f"{name}: other scores when asked together with others"

    def test_same_seed_same_scores(self, tmp_path: Path) -> None:
        """Bitwise equal, so that the cache equals a fresh computation."""
        first, second = self.attribute(tmp_path / "1"), self.attribute(tmp_path / "2")
        assert tensor_digest(first) == tensor_digest(second), "two runs with one seed gave two results"

    def test_model_comes_back_as_it_was(self, tmp_path: Path) -> None:
        """Weights, gradients, flags and modes are as before."""
        model = self.make_model()
        before = Snapshot.of(model.network)
        self.attribute(tmp_path, model=model)
        assert not before.differences(model.network), before.differences(model.network)

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Grad mode, generators and flags of the process are left alone."""
        with nothing_global_changes():
            self.attribute(tmp_path)

    def test_version_is_a_text(self) -> None:
        """The version is part of the key of the cache."""
        assert isinstance(self.plugin.version, str), "version must be a str"
        assert self.plugin.version, "version is empty"
