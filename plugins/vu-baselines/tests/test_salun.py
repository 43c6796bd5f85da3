"""SalUn: exact density, global ranking, weights that do not move, and the method inside (baselines.md, truth 2)."""

from __future__ import annotations

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from vu_baselines.random_label import RandomLabel, RandomLabelConfig
from vu_baselines.salun import SalUn, SalUnConfig
from vu_core import PlanError, VuError
from vu_core.adapters import Full, FullConfig, edit_digest
from vu_core.config import Override
from vu_core.stages.read import read
from vu_core.stages.structure import structure
from vu_core.testing.toy_denoiser import ToyDenoiser
from vu_core.training import Training, fit

SGD = Training(steps=20, batch_size=2, lr=0.05, schedule="constant", optimizer="sgd", momentum=0.9, weight_decay=5e-2)


class Keeping:
    """Watches the hard mask of a run and keeps what it leaves."""

    def __init__(self, mask):
        self.mask = mask

    def __getattr__(self, name):
        return getattr(self.mask, name)

    def after_step(self, optimizer):
        self.mask.after_step(optimizer)
        self.optimizer = optimizer


@pytest.fixture
def unlearn(make_run, make_axis, latents):
    """Run SalUn on the toy denoiser: ``(edit, masks, run)``."""

    def make(density=0.5, config=None, training=SGD, **fields):
        mask = Keeping(make_axis("regularizer", "hard-mask", density=density))
        run = make_run(**{"training": training, "regularizers": (mask,), **fields})
        edit = SalUn(config or SalUnConfig()).unlearn(ToyDenoiser(), latents, run)
        run.release()
        return edit, mask, run

    return make


def changed(edit, model):
    """Per tensor of the denoiser which elements the edit changes."""
    base = {name: p.detach() for name, p in model.network.named_parameters() if name.startswith("unet.")}
    found = {}
    for name, tensor in base.items():
        part = edit.parts.get(name)
        if part is None:
            found[name] = torch.zeros_like(tensor, dtype=torch.bool)
        elif hasattr(part, "indices"):
            found[name] = torch.zeros(tensor.numel(), dtype=torch.bool)
            found[name][part.indices.long()] = True
            found[name] = found[name].reshape(tensor.shape)
        else:
            found[name] = part.tensor != tensor
    return found


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_exactly_the_share_may_change(density, unlearn, denoiser):
    edit, mask, _ = unlearn(density)
    masks = mask._masks
    total = sum(p.numel() for name, p in denoiser.network.named_parameters() if name.startswith("unet."))
    assert sum(m.numel() for m in masks.values()) == total
    assert sum(int(m.sum()) for m in masks.values()) == int(density * total)
    moved = changed(edit, denoiser)
    assert all(not bool((moved[name] & ~masks[name]).any()) for name in masks)
    assert sum(int(m.sum()) for m in moved.values()) > 0.9 * int(density * total)


def test_the_ranking_is_global_and_takes_the_most_salient(unlearn, make_run, latents, denoiser):
    _, mask, _ = unlearn(0.3)
    run = make_run()
    names = list(mask._masks)
    scores = run.attribute(denoiser, latents, candidates=names)
    kept = torch.cat([scores[name][mask._masks[name]] for name in names])
    left = torch.cat([scores[name][~mask._masks[name]] for name in names])
    assert kept.min() >= left.max()
    shares = {name: mask._masks[name].double().mean().item() for name in names}
    assert max(shares.values()) > 0.6  # one threshold for all tensors, not 30 % of each
    assert min(shares.values()) < 0.1


def test_masked_weights_are_bit_identical_after_sgd_with_momentum_and_decay(unlearn, denoiser):
    edit, mask, _ = unlearn(0.5)
    moved = changed(edit, denoiser)
    still = sum(int((~m).sum()) for m in mask._masks.values())
    assert still > 100
    assert all(not bool(moved[name][~m].any()) for name, m in mask._masks.items())
    buffers = [state["momentum_buffer"] for state in mask.optimizer.state.values()]
    masks = list(mask._masks.values())
    assert len(buffers) == len(masks)
    assert all(not bool(buffer[~m].any()) for buffer, m in zip(buffers, masks, strict=True))
    assert any(bool(buffer.any()) for buffer in buffers)


def test_masks_survive_their_file(unlearn, make_axis, make_run, denoiser, tmp_path):
    _, mask, _ = unlearn(0.3)
    save_file(dict(mask.state()), tmp_path / "masks.safetensors")
    again = make_axis("regularizer", "hard-mask", density=0.3)
    theta = make_run().parameterise(denoiser)
    again.load_state(load_file(tmp_path / "masks.safetensors"), theta)
    assert all(torch.equal(again._masks[name], m) for name, m in mask._masks.items())
    assert sum(t.numel() for t in mask.state().values()) < sum(m.numel() for m in mask._masks.values()) / 4
    theta.detach()


def test_a_full_mask_is_the_method_inside(unlearn, make_run, latents):
    masked, _, _ = unlearn(1.0)
    plain = RandomLabel(RandomLabelConfig()).unlearn(ToyDenoiser(), latents, make_run(training=SGD))
    assert edit_digest(attrs.evolve(masked, facts={})) == edit_digest(attrs.evolve(plain, facts={}))
    assert masked.facts == {**plain.facts, "base_method": "random-label"}


def test_the_method_inside_gets_its_settings(unlearn):
    plain, _, _ = unlearn()
    other, _, _ = unlearn(config=SalUnConfig(base={"teacher": "base"}))
    alias, _, _ = unlearn(config=SalUnConfig(base_method="rl"))
    assert edit_digest(attrs.evolve(plain, facts={})) != edit_digest(attrs.evolve(other, facts={}))
    assert edit_digest(attrs.evolve(plain, facts={})) == edit_digest(attrs.evolve(alias, facts={}))


def squares(theta):
    return sum(p.square().sum() for p in theta.parameters())


def test_any_method_that_trains_can_be_inside(unlearn, denoiser):
    class Decay:
        """Stands for the method of another plugin: shrinks everything."""

        Config = RandomLabelConfig

        def unlearn(self, model, data, run):
            theta = run.parameterise(model)
            fit(theta, lambda batches: {side: squares(theta) for side in batches}, data, run)
            return theta.edit()

    edit, mask, _ = unlearn(0.3, SalUnConfig(base_method="decay"), resolve=lambda name, settings: Decay())
    moved = changed(edit, denoiser)
    assert sum(int(m.sum()) for m in moved.values()) > 0
    assert all(not bool(moved[name][~m].any()) for name, m in mask._masks.items())
    assert edit.facts["base_method"] == "decay"


def test_a_method_without_training_cannot_be_inside(unlearn):
    class ClosedForm:
        @attrs.frozen
        class Config:
            pass

    with pytest.raises(PlanError, match="uce") as caught:
        unlearn(config=SalUnConfig(base_method="uce"), resolve=lambda name, settings: ClosedForm())
    assert caught.value.code == "VU-L096"


def test_without_a_mask_it_is_an_error(unlearn):
    with pytest.raises(PlanError, match="random-label") as caught:
        unlearn(regularizers=())
    assert caught.value.code == "VU-L097"


def test_low_rank_factors_cannot_be_masked(unlearn, make_axis):
    with pytest.raises(PlanError) as caught:
        unlearn(parameters=make_axis("parameters", "lora", rank=2))
    assert caught.value.code == "VU-L033"


def test_the_parameters_say_what_is_ranked(unlearn, denoiser):
    _, mask, _ = unlearn(0.5, parameters=Full(FullConfig(targets=("attn2",))))
    assert all("attn2" in name for name in mask._masks)
    assert sum(int(m.sum()) for m in mask._masks.values()) == sum(m.numel() for m in mask._masks.values()) // 2


# As configured


@pytest.fixture
def configured(plugins):
    """The configuration that flags and ``--set`` give."""

    def make(**values):
        flags = {"unlearner.method": "salun", "data.forget": ("style:checker",), **values}
        return structure(read(None, [Override(key, value, "--set") for key, value in flags.items()]), plugins)

    return make


def test_shipped_settings_reach_the_mask_and_the_saliency(configured):
    config = configured()
    assert [(choice.name, choice.config.density) for choice in config.regularizers] == [("hard-mask", 0.5)]
    scores = config.attribution.config
    assert (config.attribution.name, scores.reduce, scores.guidance) == ("saliency", "abs_sum", 7.5)
    assert scores.weight_by_batch_size


def test_the_density_can_be_set(configured):
    config = configured(**{"regularizer.hard-mask.density": 0.1})
    assert [(choice.name, choice.config.density) for choice in config.regularizers] == [("hard-mask", 0.1)]


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("unlearner.base.teacher", "nobody", "teacher"),
        ("unlearner.base.teachr", "base", "teacher"),
        ("unlearner.base_method", "random-labl", "random-label"),
    ],
)
def test_settings_of_the_method_inside_are_checked_as_its_own(key, value, word, configured):
    with pytest.raises(VuError, match=word) as caught:
        configured(**{key: value})
    assert key.rpartition(".")[2] in str(caught.value) or word in str(caught.value)


def test_salun_cannot_be_inside_itself():
    with pytest.raises(ValueError, match="another method"):
        SalUnConfig(base_method="salun")


def test_the_defaults_are_those_of_the_paper():
    assert SalUn.defaults["regularizer"] == {"hard-mask": {"density": 0.5}}
    assert SalUn.defaults["attribution"] == {
        "name": "saliency",
        "reduce": "abs_sum",
        "batch_size": 8,
        "guidance": 7.5,
        "weight_by_batch_size": True,
    }
    assert SalUn.defaults["weighting"] == {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.1}
    assert SalUn.defaults["parameters"] == {"name": "full"}
