"""ESD in a whole run: subsets, banks, axes, prediction types, the paper's defaults."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_concept_editing.esd import Esd, EsdConfig
from vu_core import PlanError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig, apply_edit, edit_digest
from vu_core.testing import ToyDenoiser, ToyWeighting, toy_data, toy_run
from vu_core.testing.toy_methods import ToyWeightingConfig
from vu_core.training import Training
from vu_core.weightings import ForgetOnly, ForgetOnlyConfig, Simple, SimpleConfig

QUICK = {"training": Training(steps=3, batch_size=2, lr=1e-2), "sampling_steps": 3}
NONE, SIMPLE = ForgetOnly(ForgetOnlyConfig()), Simple(SimpleConfig())


@pytest.fixture
def unlearn(tmp_path):
    """Run the method on toy data: ``(edit, events)``."""
    count = iter(range(100))

    def run_once(model=None, weighting=NONE, parameters=None, data=None, regularizers=(), **settings):
        config, events = EsdConfig(**{**QUICK, **settings}), []
        run = toy_run(
            tmp_path / str(next(count)),
            training=config.training,
            weighting=weighting,
            parameters=parameters or Full(FullConfig()),
            regularizers=regularizers,
            emit_event=events.append,
        )
        edit = Esd(config).unlearn(model or ToyDenoiser(), data or toy_data(), run)
        return edit, events

    return run_once


def losses_of(events):
    told = [event.values for event in events if event.type == "progress"]
    return [values for values in told if any(key.startswith("loss_") for key in values)]


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("x", lambda name: "attn2" in name),
        ("xattn", lambda name: "attn2" in name),
        ("x-strict", lambda name: "attn2.to_k" in name or "attn2.to_v" in name),
        ("esd-u", lambda name: "attn2" not in name),
        ("all", lambda name: True),
        ("self", lambda name: "attn1" in name),
    ],
)
def test_what_is_outside_of_the_subset_stays_bit_identical(unlearn, name, belongs):
    model = ToyDenoiser()
    before = {key: tensor.clone() for key, tensor in model.network.named_parameters()}
    edit, _ = unlearn(model, subset=name)
    trained = {key for key in before if key.startswith("unet.") and belongs(key)}
    assert edit.facts["tuned_parameters"] == sum(before[key].numel() for key in trained)
    with apply_edit(model.network, edit):
        changed = {key for key, tensor in model.network.named_parameters() if not torch.equal(tensor, before[key])}
    assert changed <= trained
    assert len(changed) >= len(trained) - 1, "softmax does not see what all keys have in common"
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.network.named_parameters())


def test_low_rank_factors_are_trained_in_the_same_layers(unlearn):
    edit, _ = unlearn(parameters=Lora(LoraConfig(rank=2)), subset="x-strict")
    assert sorted(edit.parts) == ["unet.attn2.to_k.weight", "unet.attn2.to_v.weight"]


def test_subset_without_layers_is_an_error(unlearn):
    with pytest.raises(PlanError) as caught:
        unlearn(parameters=Full(FullConfig(targets=("attn1",))), subset="x")
    assert caught.value.code == "VU-L092"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_prompt_is_forgotten(unlearn, prediction):
    """The model ends where the target lies, whatever it predicts."""
    training = Training(steps=60, batch_size=4, lr=2e-2, weight_decay=0.0)
    edit, events = unlearn(
        ToyDenoiser(prediction), subset="all", training=training, sampled_by="base", bank=8, prompts=("neon",)
    )
    told = [values["loss_forget"] for values in losses_of(events)]
    assert told[-1] < 0.1 * told[0]
    assert edit.parts


@pytest.mark.parametrize("weighting", [SIMPLE, ToyWeighting(ToyWeightingConfig())])
def test_other_weightings_bring_the_retain_loss(unlearn, weighting):
    _, events = unlearn(weighting=weighting)
    told = losses_of(events)
    assert all({"loss_forget", "loss_retain"} <= values.keys() for values in told)
    assert told[0]["loss_retain"] == 0.0
    assert told[-1]["loss_retain"] > 0.0
    _, events = unlearn(weighting=NONE)
    assert all("loss_retain" not in values for values in losses_of(events))


def test_weighting_of_retain_alone_changes_nothing(unlearn):
    only = Simple(SimpleConfig(forget_weight=0.0, retain_weight=1.0))
    still = Training(steps=3, batch_size=2, lr=1e-2, weight_decay=0.0)
    _, events = unlearn(weighting=only, training=still)
    assert all(values["loss_retain"] == 0.0 for values in losses_of(events)), "the untouched model keeps everything"


def test_bank_asks_the_sampler_once(unlearn, monkeypatch):
    rows = []
    denoise = ToyDenoiser.denoise_partly

    def counted(self, captions, noise, **how):
        rows.append(len(noise))
        return denoise(self, captions, noise, **how)

    monkeypatch.setattr(ToyDenoiser, "denoise_partly", counted)
    unlearn(sampled_by="base", bank=4, weighting=SIMPLE)
    assert rows == [4, 4]
    rows.clear()
    unlearn(sampled_by="base", bank=4, weighting=NONE)
    assert rows == [4], "a side that the weighting leaves out needs no latents"
    rows.clear()
    unlearn(sampled_by="base", weighting=SIMPLE)
    assert rows == [2, 2] * 3


def test_bank_keeps_the_number_of_steps(unlearn):
    epochs = Training(epochs=2, batch_size=1, lr=1e-2)
    _, fresh = unlearn(sampled_by="base", training=epochs)
    _, banked = unlearn(sampled_by="base", training=epochs, bank=5)
    assert len(losses_of(fresh)) == len(losses_of(banked)) == 4


def test_latents_of_the_student_change_while_it_learns(unlearn):
    by_student, _ = unlearn(sampled_by="student")
    by_base, _ = unlearn(sampled_by="base")
    assert edit_digest(by_student) != edit_digest(by_base)


class Looking:
    """A regularizer that looks at latents."""

    side = "outside"

    def prepare(self, model, theta, data, run):
        self.columns = set(data.forget.tensors)

    def penalty(self):
        return None

    def after_step(self, optimizer):
        pass

    def state(self):
        return {}


def test_regularizers_see_prepared_images(unlearn):
    class Preparing(ToyDenoiser):
        def prepare(self, examples, run):
            return examples.with_tensors(prepared=torch.zeros(len(examples)))

    looking = Looking()
    unlearn(Preparing(), regularizers=(looking,))
    assert looking.columns == {"latent_mean", "latent_std", "prepared"}


def test_defaults_are_the_papers():
    config = EsdConfig()
    training = config.training
    assert (training.steps, training.lr, training.batch_size, training.schedule) == (1000, 1e-5, 1, "constant")
    assert (training.weight_decay, training.max_grad_norm) == (0.0, 0.0)
    assert (config.negative_guidance, config.start_guidance, config.sampling_steps) == (1.0, 3.0, 50)
    assert (config.erase_from, config.sampled_by, config.timestep_sampling) == ("none", "student", "bin")
    assert (config.subset, config.bank, config.prompts) == ("x", 0, ())
    assert Esd.defaults == {"weighting": {"name": "none"}, "parameters": {"name": "full"}}
    assert Esd.uses_images is False
    assert attrs.evolve(config, subset="esd-u").subset == "esd-u"
