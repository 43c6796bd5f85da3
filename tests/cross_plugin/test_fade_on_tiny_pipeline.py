"""FADE on a randomly initialised Stable Diffusion pipeline: acceptance truths on the real denoiser."""

from __future__ import annotations

import pytest
import torch

from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_core import Examples, ForgetRetain, Run
from vu_core.adapters import Lora, LoraConfig, MaskedLora, apply_edit
from vu_core.plugins import discover
from vu_core.training import Training
from vu_diffusers.tiny import tiny_model
from vu_fade.fade import Fade, FadeConfig
from vu_fade.sparse_module import FadeSparseModule, FadeSparseModuleConfig
from vu_fade.sparse_weight import FadeSparseWeight, FadeSparseWeightConfig


def pixels(row, generator):
    return torch.rand(3, 32, 32, generator=generator) * 2 - 1


def table(side):
    captions = tuple(f"{side} image {row}" for row in range(3))
    return Examples(
        side=side, captions=captions, overwrites=("a plain image",) * 3 if side == "forget" else None, load=pixels
    )


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    return tiny_model(prediction=request.param)


@pytest.fixture
def make_run(tmp_path):
    count = iter(range(100))

    def make(**fields):
        folder = tmp_path / str(next(count))
        folder.mkdir()
        weighting = discover(installed=False).registry.get("weighting", "simple").load()
        axes = {
            "training": Training(steps=3, batch_size=2, lr=1e-3),
            "parameters": Lora(LoraConfig(rank=2, alpha=4.0)),
            "weighting": weighting(weighting.Config(forget_weight=0.3, retain_weight=1.0)),
            "attribution": Saliency(SaliencyConfig()),
        }
        return Run(
            seed=3, device="cpu", precision="fp32", folder=folder, cache=tmp_path / "cache", **{**axes, **fields}
        )

    return make


@pytest.fixture
def data(model, make_run):
    tables = ForgetRetain(table("forget"), table("retain"), table("forget"), table("retain"))
    return tables.map(lambda examples: model.prepare(examples, make_run()))


def losses_of(run):
    seen = []
    run.emit_event = lambda event: seen.append(event.values) if "loss_forget" in event.values else None
    return seen


VARIANTS = {
    "fade": (Fade(FadeConfig()), {}),
    "bank": (Fade(FadeConfig(teacher_bank=5)), {}),
    "split": (Fade(FadeConfig(split_backward=True)), {}),
    "split-bank": (Fade(FadeConfig(teacher_bank=5, split_backward=True)), {}),
    "sparse-module": (FadeSparseModule(FadeSparseModuleConfig(sparsity_inclusiveness=0.3)), {}),
    "sparse-weight": (
        FadeSparseWeight(FadeSparseWeightConfig(sparsity_inclusiveness=0.3)),
        {"parameters": MaskedLora(LoraConfig(rank=2, alpha=4.0))},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_retain_loss_is_zero_and_the_base_is_untouched(name, model, data, make_run):
    method, axes = VARIANTS[name]
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    run = make_run(**axes)
    seen = losses_of(run)
    edit = method.unlearn(model, data, run)
    assert seen[0]["loss_retain"] == 0.0
    assert seen[0]["loss_forget"] > 0.0
    assert seen[-1]["loss_retain"] > 0.0
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert any(part.delta().any() for _, part in edit)


@pytest.mark.parametrize("name", ["fade", "sparse-weight"])
def test_the_edit_changes_the_answers_and_reverts(name, model, data, make_run):
    method, axes = VARIANTS[name]
    edit = method.unlearn(model, data, make_run(**axes))
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([100, 900])

    def ask():
        with torch.no_grad():
            return model.predict(z, t, model.embed(["forget image 0", "retain image 0"]))

    before = ask()
    with apply_edit(model.network, edit):
        assert not torch.equal(ask(), before)
    assert torch.equal(ask(), before)


def test_the_names_resolve_and_aliases_mean_the_same_class():
    registry = discover().registry
    for alias, name in (
        ("spare", "fade"),
        ("spare-sparse-module", "fade-sparse-module"),
        ("fade-sparse", "fade-sparse-weight"),
        ("spare-sparse", "fade-sparse-weight"),
        ("spare-sparse-weight", "fade-sparse-weight"),
    ):
        entry = registry.get("unlearner", alias)
        assert entry.name == name
        assert entry.load() is registry.get("unlearner", name).load()
        assert entry.needs == ("denoise",)
    for name in ("saliency", "fisher", "magnitude", "random"):
        assert registry.get("attribution", name).load().version
    assert registry.default("attribution").name == "saliency"
