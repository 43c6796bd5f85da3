"""The events ``gradient_conflict`` of `fit`, against cosines of the gradients themselves."""

import json
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from engine_toys import toy_data, toy_model, toy_run

from vu_core.conflict import COSINES, read_conflict
from vu_core.run_folder import EVENTS, EventLog
from vu_core.training import Training, fit
from vu_core.weightings import Simple, SimpleConfig

STEPS = 8


@attrs.define
class Turning:
    """Other coefficients at every step, a negative one among them; flags every third step."""

    linear = False
    step: int = 0
    chosen: list[tuple[float, float]] = attrs.field(factory=list)

    def coefficients(self, gram, losses, state):
        pair = (1.0 - 0.3 * self.step, 0.2 + 0.1 * self.step)
        state["flags"] = ["third"] if self.step % 3 == 0 else []
        self.step += 1
        self.chosen.append(pair)
        return tuple(map(torch.tensor, pair))


def strict(text: str) -> Any:
    """Parse JSON as the standard has it: no NaN, no infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def gradients(parameters) -> dict[str, list[list[torch.Tensor]]]:
    """Draw the gradients of each side and step; the retain one of the first step is zero."""
    generator = torch.Generator().manual_seed(11)
    drawn = {
        side: [[torch.randn(p.shape, generator=generator) for p in parameters] for _ in range(STEPS)]
        for side in ("retain", "forget")
    }
    drawn["retain"][0] = [torch.zeros_like(g) for g in drawn["retain"][0]]
    return drawn


def trained(folder, weighting, accumulation=1, **changes):
    """Train on losses that are linear in the parameters, so that their gradients are known; keep the events."""
    model = toy_model()
    training = Training(steps=STEPS, lr=1e-3, accumulation=accumulation, max_grad_norm=0.01, **changes)
    log = EventLog(folder / EVENTS)
    run = toy_run(folder, training=training, weighting=weighting, emit_event=log.append)
    theta = run.parameterise(model)
    drawn = gradients(theta.parameters())

    def losses(batches):
        return {
            side: sum((g * p).sum() for g, p in zip(drawn[side][batch.step], theta.parameters(), strict=True))
            for side, batch in batches.items()
        }

    fit(theta, losses, toy_data(), run)
    return drawn


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def flat(gradients: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([g.numpy().astype(np.float64).ravel() for g in gradients])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_cosines_are_those_of_the_gradients(tmp_path, accumulation):
    weighting = Turning()
    drawn = trained(tmp_path, weighting, accumulation)
    found = read_conflict(tmp_path)
    assert found is not None
    assert [step.number for step in found.steps] == list(range(1, STEPS + 1))
    for step, (a_r, a_f) in zip(found.steps, weighting.chosen, strict=True):
        g_r, g_f = (flat(drawn[side][step.number - 1]) for side in ("retain", "forget"))
        g = a_r * g_r + a_f * g_f
        if step.number == 1:
            assert step.cosines == {"cos_rf": None, "cos_g_r": None, "cos_g_f": pytest.approx(1.0)}
        else:
            direct = {"cos_rf": cosine(g_r, g_f), "cos_g_r": cosine(g, g_r), "cos_g_f": cosine(g, g_f)}
            assert step.cosines == pytest.approx(direct, abs=1e-6)
        assert step.flags == (("third",) if (step.number - 1) % 3 == 0 else ())
    assert found.flags == {"third": 3}


def test_the_summary_is_that_of_the_gradients(tmp_path):
    drawn = trained(tmp_path, Turning())
    pairs = [[flat(drawn[side][step]) for side in ("retain", "forget")] for step in range(1, STEPS)]
    direct = np.array([cosine(g_r, g_f) for g_r, g_f in pairs])
    spread = read_conflict(tmp_path).spreads["cos_rf"]
    assert (spread.defined, spread.undefined) == (STEPS - 1, 1)
    assert 0 < spread.negative < 1
    assert spread.negative == np.mean(direct < 0)
    assert spread.mean == pytest.approx(direct.mean())
    assert [spread.low, spread.median, spread.high] == pytest.approx(list(np.percentile(direct, [5, 50, 95])))
    assert list(spread.histogram) == list(np.histogram(direct, bins=50, range=(-1, 1))[0])


def test_a_linear_weighting_tells_when_it_is_asked_to(tmp_path):
    (tmp_path / "asked").mkdir()
    drawn = trained(tmp_path / "asked", Simple(SimpleConfig(retain_weight=0.3)), gradient_conflict=True)
    found = read_conflict(tmp_path / "asked")
    g_r, g_f = (flat(drawn[side][3]) for side in ("retain", "forget"))
    g = 0.3 * g_r + g_f
    direct = {"cos_rf": cosine(g_r, g_f), "cos_g_r": cosine(g, g_r), "cos_g_f": cosine(g, g_f)}
    assert found.steps[3].cosines == pytest.approx(direct, abs=1e-6)
    (tmp_path / "not").mkdir()
    trained(tmp_path / "not", Simple(SimpleConfig(retain_weight=0.3)))
    assert read_conflict(tmp_path / "not") is None


def test_every_line_is_strict_json(tmp_path):
    trained(tmp_path, Turning())
    lines = (tmp_path / EVENTS).read_text().splitlines()
    told = [event["values"] for event in map(strict, lines) if event["type"] == "gradient_conflict"]
    assert len(told) == STEPS
    assert [told[0][name] for name in COSINES[:2]] == [None, None]
    numbers = [value for values in told for name, value in values.items() if name[:4] in ("cos_", "norm")]
    assert all(value is None or isinstance(value, float) for value in numbers)
