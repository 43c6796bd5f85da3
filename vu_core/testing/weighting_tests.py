"""Conformance of a weighting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.watching import nothing_global_changes

GRAMS: dict[str, list[list[float]]] = {
    "agreeing": [[4.0, 1.0], [1.0, 1.0]],
    "opposed": [[4.0, -1.5], [-1.5, 1.0]],
    "orthogonal": [[2.0, 0.0], [0.0, 3.0]],
    "parallel": [[1.0, 2.0], [2.0, 4.0]],
    "exactly opposed": [[1.0, -2.0], [-2.0, 4.0]],
    "no retain gradient": [[0.0, 0.0], [0.0, 1.0]],
    "no forget gradient": [[1.0, 0.0], [0.0, 0.0]],
    "no gradient": [[0.0, 0.0], [0.0, 0.0]],
    "tiny": [[1e-20, 1e-21], [1e-21, 1e-20]],
    "huge": [[1e20, -1e19], [-1e19, 1e20]],
}
"""Gram matrices (retain, forget) that occur in training; with FADE the first step has no retain gradient."""


class WeightingTests(PluginTests):
    """Checks of a weighting; set ``plugin``."""

    def coefficients(self, gram: Tensor, state: Any = None, config: Any = None) -> tuple[float, float]:
        """Return both coefficients as floats; a linear weighting is handed no Gram matrix."""
        weighting = self.plugin(self.config() if config is None else config)
        losses = {"retain": torch.tensor(0.5), "forget": torch.tensor(2.0)}
        state = {} if state is None else state
        retain, forget = weighting.coefficients(None if self.plugin.linear else gram, losses, state)
        return float(retain), float(forget)

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the coefficients for every Gram matrix, three steps in a row."""
        result = []
        for gram in GRAMS.values():
            state: dict[str, Any] = {}
            steps = range(3)
            result.append([self.coefficients(torch.tensor(gram, dtype=torch.float64), state, config) for _ in steps])
        return result

    @pytest.mark.parametrize("name", list(GRAMS))
    def test_coefficients_are_finite(self, name: str) -> None:
        """Whatever the gradients are, the update is finite; a zero gradient is no division by zero."""
        found = self.coefficients(torch.tensor(GRAMS[name], dtype=torch.float64))
        assert all(torch.isfinite(torch.tensor(found))), f"{name}: coefficients {found}"

    def test_a_linear_weighting_is_constant(self) -> None:
        """``linear`` promises constants: neither losses nor steps change them, and there are no tensors."""
        if not self.plugin.linear:
            pytest.skip("not linear")
        weighting = self.make()
        state: dict[str, Any] = {}
        found = []
        for loss in (0.1, 1.0, 10.0):
            losses = {"retain": torch.tensor(loss), "forget": torch.tensor(1 / loss)}
            found.append(weighting.coefficients(None, losses, state))
        assert found[0] == found[1] == found[2], f"linear, but the coefficients change: {found}"
        assert all(isinstance(value, int | float) for value in found[0]), "linear coefficients must be plain numbers"

    def test_same_input_same_output(self) -> None:
        """Coefficients depend on nothing but input and state."""
        gram = torch.tensor(GRAMS["opposed"], dtype=torch.float64)
        assert self.coefficients(gram) == self.coefficients(gram), "two equal calls gave two results"

    def test_inputs_are_left_alone(self) -> None:
        """Gram matrix and losses belong to `fit`."""
        gram = torch.tensor(GRAMS["opposed"], dtype=torch.float64)
        before = gram.clone()
        losses = {"retain": torch.tensor(0.5), "forget": torch.tensor(2.0)}
        self.make().coefficients(None if self.plugin.linear else gram, losses, {})
        assert torch.equal(gram, before), "the Gram matrix was changed in place"
        assert {key: float(value) for key, value in losses.items()} == {"retain": 0.5, "forget": 2.0}, "losses changed"

    def test_state_survives_json(self) -> None:
        """Checkpoints keep the state as JSON; continuing from there gives the same coefficients."""
        gram = torch.tensor(GRAMS["opposed"], dtype=torch.float64)
        state: dict[str, Any] = {}
        for _ in range(3):
            self.coefficients(gram, state)
        saved = json.loads(json.dumps(state, allow_nan=False))
        assert self.coefficients(gram, saved) == self.coefficients(gram, state), "another result after a checkpoint"

    def test_instances_share_nothing(self) -> None:
        """All memory is in the state, so that two runs in one process do not meet."""
        gram = torch.tensor(GRAMS["agreeing"], dtype=torch.float64)
        losses = {"retain": torch.tensor(0.5), "forget": torch.tensor(2.0)}
        used = self.make()
        for _ in range(3):
            used.coefficients(None if self.plugin.linear else gram, losses, {})
        again = used.coefficients(None if self.plugin.linear else gram, losses, {})
        assert tuple(map(float, again)) == self.coefficients(gram), "an instance remembers what its state should hold"

    def test_nothing_global_changes(self) -> None:
        """Generators and flags of the process are left alone."""
        with nothing_global_changes():
            self.coefficients(torch.tensor(GRAMS["opposed"], dtype=torch.float64))
