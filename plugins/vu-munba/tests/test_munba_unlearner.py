"""MUNBa as a method: its objective, what it trains, the penalty, and the scale that does nothing."""

from __future__ import annotations

import attrs
import pytest
import torch

from vu_baselines.random_label import RandomLabel, RandomLabelConfig
from vu_core import ConfigError, PlanError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig, edit_digest
from vu_core.plugins import discover
from vu_core.testing import ToyClassifier, UnlearnerTests, toy_forget_retain, toy_run
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training
from vu_munba.asymmetric import NashAsymmetric, NashAsymmetricConfig
from vu_munba.bargain import BargainConfig
from vu_munba.munba import Munba
from vu_munba.plugin import vu_register_unlearners
from vu_munba.unlearner import MunbaUnlearner, MunbaUnlearnerConfig

AXES = ("parameters", "weighting", "regularizer")
QUICK = Training(steps=3, batch_size=2, lr=1e-2)


class TestMunbaUnlearner(UnlearnerTests):
    plugin = MunbaUnlearner
    settings = {"training": QUICK}
    axes = AXES
    other_values = {"subset": "self"}
    tested_elsewhere = ("forget_scale", "relabel")  # does nothing when bargaining; an error, as random-label tests

    def make_model(self):
        return ToyDenoiser()

    def make_data(self, run):
        return toy_data()


class TestMunbaUnlearnerOfAClassifier(UnlearnerTests):
    plugin = MunbaUnlearner
    settings = {"training": QUICK}
    axes = AXES
    other_values = {"subset": "self"}
    tested_elsewhere = ("forget_scale",)

    def make_model(self):
        return ToyClassifier()


@pytest.fixture
def unlearn(tmp_path):
    """Run the method on the toy denoiser: ``(edit, warnings)``."""
    count = iter(range(1000))

    def make(config=None, method=MunbaUnlearner, **fields):
        told = []
        axes = {"training": QUICK, "parameters": Full(FullConfig()), "weighting": Munba(BargainConfig())}
        folder = tmp_path / str(next(count))
        run = toy_run(folder, emit_event=lambda event: told.append(event), **{**axes, **fields})
        edit = method(config or method.Config()).unlearn(ToyDenoiser(), toy_data(), run)
        run.release()
        return edit, [event.values["text"] for event in told if event.type == "warning"]

    return make


def contents(edit):
    return edit_digest(attrs.evolve(edit, facts={}))


def simple(**settings):
    plugin = discover(installed=False).registry.get("weighting", "simple").load()
    return plugin(plugin.Config(**settings))


def test_the_objective_is_that_of_random_label(unlearn):
    munba, _ = unlearn()
    random_label, _ = unlearn(RandomLabelConfig(subset="x"), RandomLabel)
    assert contents(munba) == contents(random_label)
    assert munba.facts == random_label.facts


def test_cross_attention_is_trained_unless_told_otherwise(unlearn):
    edit, _ = unlearn()
    assert edit.parts
    assert all("attn2" in name for name in edit.parts)
    edit, _ = unlearn(MunbaUnlearnerConfig(subset=None))
    assert any("attn2" not in name for name in edit.parts)


def test_the_defaults_are_those_of_the_paper():
    config = MunbaUnlearnerConfig()
    assert (config.training.epochs, config.training.batch_size, config.training.lr) == (5, 8, 1e-5)
    assert (config.training.weight_decay, config.training.max_grad_norm) == (0.0, 1.0)
    assert (config.subset, config.forget_scale, config.l1) == ("x", 1.0, 0.0)
    assert MunbaUnlearner.defaults == {"weighting": {"name": "munba"}, "parameters": {"name": "full"}}


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_forget_scale_does_nothing_when_bargaining_and_the_run_is_warned(scale, unlearn):
    usual, quiet = unlearn()
    other, told = unlearn(MunbaUnlearnerConfig(forget_scale=scale))
    assert quiet == []
    assert len(told) == 1
    assert "forget_scale" in told[0]
    assert "nash-asymmetric" in told[0]
    for name, part in usual:
        base = ToyDenoiser().network.get_parameter(name).detach()
        torch.testing.assert_close(other.parts[name].tensor - base, part.tensor - base, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(("rule", "config"), [(Munba, BargainConfig), (NashAsymmetric, NashAsymmetricConfig)])
def test_the_forget_scale_acts_where_opposed_gradients_are_projected_and_nothing_is_claimed(rule, config, unlearn):
    weighting = rule(config(c_min=-1e-9, opposed="project"))
    usual, quiet = unlearn(weighting=weighting)
    other, told = unlearn(MunbaUnlearnerConfig(forget_scale=100.0), weighting=weighting)
    assert quiet == told == []
    assert contents(usual) != contents(other)


def test_the_other_bargain_warns_too_and_weighted_sums_do_not(unlearn):
    config = MunbaUnlearnerConfig(forget_scale=2.0)
    _, told = unlearn(config, weighting=NashAsymmetric(NashAsymmetricConfig(forget_power=2.0)))
    assert len(told) == 1
    weighted, told = unlearn(config, weighting=simple(forget_weight=1.0, retain_weight=1.0))
    plain, _ = unlearn(weighting=simple(forget_weight=1.0, retain_weight=1.0))
    assert told == []
    assert contents(weighted) != contents(plain)


def test_the_penalty_is_the_sum_of_absolute_values_on_the_retain_side(unlearn):
    # One step of SGD with the retain loss alone: the penalty moves every weight by lr * lambda * sign.
    one = Training(steps=1, batch_size=2, lr=0.1, optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=0.0)
    fields = {"training": one, "weighting": simple(forget_weight=0.0, retain_weight=1.0)}
    plain, _ = unlearn(**fields)
    penalised, _ = unlearn(MunbaUnlearnerConfig(l1=0.5), **fields)
    for name, part in penalised:
        base = ToyDenoiser().network.get_parameter(name).detach()
        before = plain.parts[name].tensor if name in plain.parts else base
        torch.testing.assert_close(before - part.tensor, 0.1 * 0.5 * base.sign(), rtol=1e-3, atol=1e-6)
    fields["weighting"] = simple(forget_weight=1.0, retain_weight=0.0)
    assert contents(unlearn(**fields)[0]) == contents(unlearn(MunbaUnlearnerConfig(l1=0.5), **fields)[0])


def test_low_rank_changes_of_cross_attention_work(unlearn):
    edit, _ = unlearn(parameters=Lora(LoraConfig(rank=2)))
    assert len(edit.parts) == 4
    assert all("attn2" in name for name in edit.parts)


def test_no_attention_is_an_error(unlearn):
    with pytest.raises(PlanError) as caught:
        unlearn(parameters=Full(FullConfig(targets=("conv_in",))))
    assert caught.value.code == "VU-L092"


def test_another_subset_is_refused_with_a_classifier(tmp_path):
    model = ToyClassifier()
    run = toy_run(tmp_path, training=QUICK, parameters=Full(FullConfig()), weighting=Munba(BargainConfig()))
    with pytest.raises(ConfigError) as caught:
        MunbaUnlearner(MunbaUnlearnerConfig(subset="u")).unlearn(model, toy_forget_retain(run, model=model), run)
    assert caught.value.code == "VU-C113"


def test_it_is_registered_for_both_kinds_of_model():
    seen = {}
    vu_register_unlearners(lambda name, target, **more: seen.update({name: more}))
    assert set(seen) == {"munba"}
    assert seen["munba"]["needs"] == ("denoise|classify",)
    assert seen["munba"]["axes"] == AXES
