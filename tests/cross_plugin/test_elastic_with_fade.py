"""Elastic parameters under every variant of FADE: ranks, selections and masks compose."""

import json
from pathlib import Path

import pytest
import torch

from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_cli import main
from vu_core import LowRank, Run
from vu_core.adapters import apply_edit, load_edit
from vu_core.plugins import discover
from vu_core.testing import toy_plugin
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training
from vu_elastic_lora.elastic import ElasticLora, ElasticLoraConfig
from vu_elastic_lora.extraction import extracted, groups_of
from vu_elastic_lora.groups import assigned
from vu_fade.fade import Fade, FadeConfig
from vu_fade.sparse_module import FadeSparseModule, FadeSparseModuleConfig
from vu_fade.sparse_weight import FadeSparseWeight, FadeSparseWeightConfig

SPACE = (8, 4, 2)
METHODS = [
    pytest.param(Fade(FadeConfig()), id="fade"),
    pytest.param(Fade(FadeConfig(teacher_bank=4)), id="fade with a bank"),
    pytest.param(FadeSparseModule(FadeSparseModuleConfig()), id="per module"),
    pytest.param(FadeSparseWeight(FadeSparseWeightConfig(sparsity_inclusiveness=0.3)), id="per weight"),
]


def trained(method, folder, *, sandwich=False, steps=10):
    folder.mkdir()
    run = Run(
        seed=3,
        device="cpu",
        precision="fp32",
        folder=folder,
        cache=folder,
        training=Training(steps=steps, lr=2e-2),
        parameters=ElasticLora(ElasticLoraConfig(SPACE, sandwich=sandwich)),
        attribution=Saliency(SaliencyConfig()),
    )
    return method.unlearn(ToyDenoiser(), toy_data(), run)


@pytest.mark.parametrize("method", METHODS)
def test_every_variant_trains_at_all_ranks(method, tmp_path):
    edit = trained(method, tmp_path / "run")
    assert edit.facts["elastic"]["search_space"] == list(SPACE)
    assert edit.facts["tuned_parameters"] == sum(part.A.numel() + part.B.numel() for _, part in edit)
    groups = groups_of(edit)
    for version, rank in zip(("maximal", "heuristic", "minimal"), SPACE, strict=True):
        small = extracted(edit, assigned(groups, version))
        for name, part in small:
            assert isinstance(part, LowRank)
            assert part.rank == rank
            assert part.delta().any(), f"{name} was not trained at rank {rank}"


def test_masks_hold_at_every_rank(tmp_path):
    edit = trained(METHODS[-1].values[0], tmp_path / "run")
    assert all(part.mask is not None for _, part in edit)
    for version in ("maximal", "heuristic", "minimal"):
        for name, part in extracted(edit, assigned(groups_of(edit), version)):
            assert torch.equal(part.mask, edit.parts[name].mask)
            assert not part.delta()[~part.mask].any()


def test_a_selection_of_modules_makes_smaller_groups(tmp_path):
    edit = trained(METHODS[2].values[0], tmp_path / "run")
    assert 0 < len(edit.parts) < 8
    assert sorted(name for group in groups_of(edit) for name in group.names) == sorted(edit.parts)


def test_a_smaller_adapter_still_forgets(tmp_path):
    """The minimal cut moves the answers on forgotten prompts towards those on the overwrite."""
    edit = trained(Fade(FadeConfig()), tmp_path / "run", sandwich=True, steps=120)
    model = ToyDenoiser()
    z, t = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.full((32,), 50)

    def ask(caption):
        with torch.no_grad():
            return model.predict(z, t, model.embed([caption] * 32))

    forget, plain = ask("forget 0"), ask("plain 0")
    for version in ("maximal", "heuristic", "minimal"):
        with apply_edit(model.network, extracted(edit, assigned(groups_of(edit), version))):
            left = (ask("forget 0") - plain).square().mean() / (forget - plain).square().mean()
        assert left < 0.7, version


def test_from_the_command_line_to_the_extracted_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VU_CACHE", str(tmp_path / "cache"))
    plugins = discover(extra=[("vu-toys", "0.1", toy_plugin)])
    words = ["unlearn", "--method", "fade-sparse", "--model", "toy", "--data", "toy", "--forget", "colour:red"]
    words += ["--parameters", "elastic-lora", "--set", "unlearner.parameters.search_space=[4,2]", "--seed", "3"]
    words += ["--set", "unlearner.training.steps=2", "--set", "measure.seeds=1", "--set", "measure.samples=0"]
    assert main.run([*words, "--out", "run"], plugins=plugins) == 0, capsys.readouterr().err
    assert main.run(["extract", "run", "--rank", "minimal", "--out", "small"], plugins=plugins) == 0
    part = load_edit(Path("small/sub/edit.safetensors"))
    assert {low_rank.rank for _, low_rank in part} == {2}
    assert all(low_rank.mask is not None for _, low_rank in part)
    groups = json.loads(Path("small/elastic_adapter_config.json").read_text())
    assert [group["search_space"] for group in groups] == [[4, 2], [4, 2]]
