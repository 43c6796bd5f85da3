"""What `make bench` runs, on a tiny pipeline."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from vu_diffusers.tiny import tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REFERENCES = ("reference", "reference.fade_step", "reference.gs_lora_step", "reference.munba_combine")
MODULES = ("run", "sd14", "memory", "weighting", "uce", "gs_lora", *REFERENCES)


@pytest.fixture
def bench(monkeypatch):
    """The modules of the folder ``benchmarks``, with a tiny pipeline in place of Stable Diffusion's size."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = importlib.import_module("run")

    def small(seed=0):
        from diffusers import DDPMScheduler

        network = tiny_model(seed=seed).network
        schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        return network["unet"], network["vae"], network["text_encoder"], schedule

    monkeypatch.setattr(importlib.import_module("reference.fade_step"), "sd14", small)
    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


def test_the_speed_comparisons_run(bench, tmp_path):
    found = bench.stable_diffusion(3, 2, tmp_path)
    assert [comparison.target for comparison in found] == [">=1.3", ">=1.8", "<=1.10"]
    for comparison in found:
        assert len(comparison.ratios) == 3
        assert all(ratio > 0 for ratio in comparison.ratios)
        assert comparison.name in comparison.line()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc")
def test_the_combination_of_gradients_is_compared(bench, monkeypatch):
    weighting = importlib.import_module("weighting")
    monkeypatch.setattr(weighting.munba_combine, "make", partial(weighting.munba_combine.make, 4_000_000, 400))
    speed, memory = (bench.Comparison(*row) for row in weighting.compare(3))
    assert (speed.target, len(speed.ratios), len(memory.ratios)) == (">=2.0", 3, 3)
    assert (memory.target, memory.met) == ("<=0.5", True)
    assert memory.other > 0.04, "the reference holds both gradients again, 32 MB, and more"
    monkeypatch.setattr(weighting, "combine", lambda retain, forget, *_: list(retain))
    with pytest.raises(RuntimeError, match="differ"):
        weighting.compare(3)


def test_closed_forms_are_compared(bench, monkeypatch):
    uce = importlib.import_module("uce")
    for name, value in {"WIDTHS": (64, 48), "TEXT": 32, "CONCEPTS": 2, "PRESERVED": 3}.items():
        monkeypatch.setattr(uce, name, value)
    found = [bench.Comparison(*row) for row in uce.compare(3)]
    assert [comparison.target for comparison in found] == [">=5", "<=1"]
    assert [len(comparison.ratios) for comparison in found] == [3, 3]
    monkeypatch.setattr(uce, "per_layer", lambda layers, columns, scales: {n: 2 * w for n, w in layers.items()})
    with pytest.raises(RuntimeError, match="differ"):
        uce.compare(3)


def test_gs_lora_is_compared_and_its_zero_groups_are_real(bench, monkeypatch, tmp_path):
    gs_lora = importlib.import_module("gs_lora")
    monkeypatch.setattr(gs_lora, "BATCH", 2)
    found = [bench.Comparison(*row) for row in gs_lora.compare(3, tmp_path, bench.TakingTurns)]
    assert [comparison.target for comparison in found] == ["<=1.05", ">=1.0", "<=1.10", "<=0"]
    assert [len(comparison.ratios) for comparison in found] == [3, 3, 3, 1]
    assert found[-1].ratios == [0.0], "no logit hangs on a group that the proximal update made zero"
    monkeypatch.setattr(gs_lora.GroupLasso, "_shrink", lambda *given: None)
    with pytest.raises(RuntimeError, match="some must be zero"):
        gs_lora.zero_groups(tmp_path / "none")


def test_medians_decide_and_the_direction_of_a_target_counts(bench):
    def comparison(target, *ratios):
        return bench.Comparison("x", target, list(ratios), 1.0, 2.0)

    assert comparison(">=1.3", 0.5, 1.4, 1.5).met
    assert not comparison(">=1.3", 1.2, 1.2, 9.0).met
    assert comparison("<=1.10", 1.0, 1.05, 9.0).met
    assert not comparison("<=1.10", 1.2, 1.2, 0.1).met
    assert "MISSED" in comparison("<=1.10", 1.2).line()


def test_a_speed_up_is_the_other_over_ours_and_an_overhead_ours_over_the_other(bench):
    turns = bench.TakingTurns(lambda: None)
    turns.ours, turns.others = [9.0, 1.0, 2.0], [9.0, 3.0, 4.0]
    assert turns.ratios(speed_up=True) == [3.0, 2.0]  # the first pair is a warm-up
    assert turns.ratios(speed_up=False) == [1 / 3, 0.5]


def test_a_twin_shares_the_weights_and_not_the_modules(bench):
    sd14 = importlib.import_module("sd14")
    unet = tiny_model().network["unet"]
    twin = sd14.shared_twin(unet)
    pairs = list(zip(unet.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert not set(map(id, unet.modules())) & set(map(id, twin.modules()))
    z, t, c = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 32)
    with torch.no_grad():
        assert torch.equal(unet(z, t, c).sample, twin(z, t, c).sample)


def test_the_reference_files_are_there_and_plain(bench):
    folder = BENCHMARKS / "reference"
    assert {path.name for path in folder.glob("*.py")} == {
        "barrier.py",
        "fade_step.py",
        "gs_lora_step.py",
        "munba_combine.py",
    }
    assert "vu_" not in "".join(path.read_text() for path in folder.glob("*.py"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_grows_with_what_is_held(bench):
    memory = importlib.import_module("memory")
    before = memory.peak_bytes()
    block = torch.ones(64 * 2**20 // 4)
    assert memory.peak_bytes() >= before
    assert memory.peak_bytes() >= block.numel() * 4
