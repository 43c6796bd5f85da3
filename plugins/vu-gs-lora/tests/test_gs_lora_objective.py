"""The losses of GS-LoRA, what it trains, and what its edit tells."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_transformer import HIDDEN, WIDTH, ToyTransformer, toy_tables

from vu_core import Batch, ConfigError, PlanError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig, edit_digest
from vu_core.plugins import discover
from vu_core.testing import ToyClassifier, toy_forget_retain, toy_run
from vu_core.training import From, Training
from vu_gs_lora.group_lasso import GroupLasso, GroupLassoConfig
from vu_gs_lora.gs_lora import DEFAULTS, BoundedForgetting, GsLora, GsLoraConfig


@pytest.fixture
def batches(tmp_path):
    """All forget and all retain images, at a step."""
    run = toy_run(tmp_path / "batches")
    data = toy_tables(run)

    def make(step=0):
        return {
            side: Batch(table, tuple(range(len(table))), step, tuple(range(len(table))), run, torch.device("cpu"))
            for side, table in (("forget", data.forget), ("retain", data.retain))
        }

    return make


def entropies(model, batch):
    return F.cross_entropy(model.logits(batch["pixels"]), batch["label"], reduction="none")


def losses(batches, step=0, **settings):
    per_epoch = settings.pop("per_epoch", 1)
    task = settings.pop("task", 0)
    objective = BoundedForgetting(ToyTransformer(), GsLoraConfig(**settings), task, per_epoch)
    return {side: loss.item() for side, loss in objective(batches(step)).items()}


def test_forget_loss_is_what_the_mean_lacks_to_the_bound(batches):
    ce = entropies(ToyTransformer(), batches()["forget"])
    assert losses(batches, bound=3.0, forget_weight=0.5)["forget"] == pytest.approx(0.5 * (3 - ce.mean().item()))


def test_forget_loss_is_zero_beyond_the_bound_and_so_is_its_gradient(batches):
    model = ToyTransformer()
    model.network.requires_grad_(True)
    ce = entropies(model, batches()["forget"]).mean().item()
    found = BoundedForgetting(model, GsLoraConfig(bound=ce - 0.01))(batches())["forget"]
    found.backward()
    assert found.item() == 0.0
    assert not any(p.grad.any() for p in model.network.parameters())
    assert losses(batches, bound=ce + 0.01)["forget"] > 0


def test_bound_per_image(batches):
    ce = entropies(ToyTransformer(), batches()["forget"])
    bound = ce.mean().item()  # some images are above it, some below
    assert losses(batches, bound=bound, forget_weight=1.0)["forget"] == pytest.approx(0.0, abs=1e-6)
    apart = losses(batches, bound=bound, forget_weight=1.0, per_sample=True)["forget"]
    assert apart == pytest.approx((bound - ce).clamp(min=0).mean().item())
    assert apart > 0.01


def test_retain_loss_is_the_cross_entropy(batches):
    ce = entropies(ToyTransformer(), batches()["retain"])
    assert losses(batches)["retain"] == pytest.approx(ce.mean().item())


def test_both_sides_go_through_the_model_as_one(batches):
    model = ToyTransformer()
    both = BoundedForgetting(model, GsLoraConfig())(batches())
    assert model.passes == 1
    for side, batch in batches().items():
        (alone,) = BoundedForgetting(model, GsLoraConfig())({side: batch}).values()
        assert torch.allclose(alone, both[side])


def test_a_head_with_a_margin_is_trained_with_it(batches):
    class Margin(ToyTransformer):
        def margin_logits(self, images, labels):
            return self.logits(images) - 5 * F.one_hot(labels, 3)

    model = Margin()
    found = BoundedForgetting(model, GsLoraConfig(bound=30.0, forget_weight=1.0))(batches())
    assert model.passes == 1
    for side, loss in found.items():
        batch = batches()[side]
        logits = model.logits(batch["pixels"]) - 5 * F.one_hot(batch["label"], 3)
        ce = F.cross_entropy(logits, batch["label"]).item()
        assert loss.item() == pytest.approx(30 - ce if side == "forget" else ce, rel=1e-5)


def test_values_per_task(batches):
    settings = {"forget_weight": (0.2, 0.4), "bound": (3.0, 5.0)}
    ce = entropies(ToyTransformer(), batches()["forget"]).mean().item()
    assert losses(batches, **settings, task=0)["forget"] == pytest.approx(0.2 * (3 - ce))
    assert losses(batches, **settings, task=1)["forget"] == pytest.approx(0.4 * (5 - ce))


def test_values_from_an_epoch(batches):
    settings = {"forget_weight": From(2, 1e-4, before=0.2), "per_epoch": 5}
    assert losses(batches, 9, **settings)["forget"] == pytest.approx(losses(batches)["forget"])
    assert losses(batches, 10, **settings)["forget"] == pytest.approx(losses(batches)["forget"] * 1e-4 / 0.2)


def test_list_that_is_too_short_ends_the_run_at_once(unlearn):
    model = ToyTransformer()
    with pytest.raises(ConfigError) as caught:
        unlearn(GsLora, model=model, forget_weight=(0.2, 0.3), task=2)
    assert caught.value.code == "VU-C054"
    assert model.passes == 0


@pytest.mark.parametrize(("position", "of_block"), [("ffn", ("ffn.0", "ffn.2")), ("attention", ("attention",))])
def test_what_is_trained(unlearn, position, of_block):
    edit, _, _ = unlearn(GsLora, position=position)
    assert set(edit.parts) == {f"classifier.blocks.{i}.{name}.weight" for i in range(2) for name in of_block}


def test_tunable_share(unlearn):
    edit, model, _ = unlearn(GsLora)
    count = 2 * 2 * 2 * (WIDTH + HIDDEN)  # blocks * 2 r (d + m) with r = 2
    assert edit.facts["tuned_parameters"] == count
    assert edit.facts["tunable_ratio"] == count / sum(p.numel() for p in model.network.parameters())


def test_default_adapter_is_the_one_of_the_paper(tmp_path):
    table = dict(DEFAULTS["parameters"])
    plugin = discover().registry.get("parameters", table.pop("name")).load()
    model, run = ToyTransformer(), toy_run(tmp_path, parameters=plugin(plugin.Config(**table)))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = model.logits(images)
    theta = run.parameterise(model, targets=model.blocks()[0].ffn)
    assert torch.equal(model.logits(images), before)
    assert [layer.factors.scale for layer in theta.layers.values()] == [1 / 8, 1 / 8]
    assert all(tensor.shape[0] == 8 for name, tensor in theta.named_parameters() if name.endswith(".A"))
    a = dict(theta.named_parameters())[f"{model.blocks()[0].ffn[0]}.A"]
    assert 0.5 / WIDTH**0.5 < float(a.detach().abs().max()) <= 1 / WIDTH**0.5
    theta.detach()


def test_model_is_bit_identical_afterwards(unlearn):
    model = ToyTransformer()
    before = {name: tensor.clone() for name, tensor in model.network.named_parameters()}
    unlearn(GsLora, model=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.named_parameters())


def test_model_without_blocks_is_refused(unlearn, tmp_path):
    data = toy_forget_retain(toy_run(tmp_path), model=ToyClassifier())
    with pytest.raises(PlanError) as caught:
        unlearn(GsLora, model=ToyClassifier(), data=data)
    assert caught.value.code == "VU-L113"


def test_blocks_without_attention_are_refused(unlearn, monkeypatch):
    bare = tuple(attrs.evolve(block, attention=()) for block in ToyTransformer().blocks())
    monkeypatch.setattr(ToyTransformer, "blocks", lambda self: bare)
    with pytest.raises(PlanError) as caught:
        unlearn(GsLora, position="attention")
    assert caught.value.code == "VU-L113"


# Parity: the smaller first A of later tasks


class FirstA:
    """Keeps the adapter as it is before the first step."""

    side = "outside"

    def __init__(self):
        self.seen = {}

    def prepare(self, model, theta, data, run):
        self.seen = {name: tensor.detach().clone() for name, tensor in theta.named_parameters()}

    def penalty(self):
        return None

    def after_step(self, optimizer):
        pass

    def state(self):
        return {}


def first_adapter(unlearn, **fields):
    watching = FirstA()
    unlearn(GsLora, regularizers=(watching,), **fields)
    return watching.seen


@pytest.mark.parametrize(("task", "scale"), [(0, 1.0), (1, (6 / 51) ** 0.5)])
def test_parity_reinit_begins_later_tasks_smaller(unlearn, task, scale):
    usual = first_adapter(unlearn, task=task)
    smaller = first_adapter(unlearn, task=task, parity_reinit=True)
    for name, tensor in usual.items():
        assert torch.allclose(smaller[name], tensor * (scale if name.endswith(".A") else 1.0))


def test_parity_reinit_is_what_kaiming_uniform_draws():
    weight = torch.empty(8, 50)
    generator = torch.Generator().manual_seed(0)
    nn.init.kaiming_uniform_(weight, a=50**0.5, generator=generator)
    drawn = weight.clone()
    nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator.manual_seed(0))
    assert torch.allclose(drawn, weight * (6 / 51) ** 0.5)


def test_parity_reinit_needs_a_lora(unlearn):
    with pytest.raises(ConfigError) as caught:
        unlearn(GsLora, parity_reinit=True, parameters=Full(FullConfig()))
    assert caught.value.code == "VU-C144"


# Facts and pruning


def test_a_strong_lasso_leaves_zero_groups(unlearn):
    lasso = GroupLasso(GroupLassoConfig(weight=1e5, groups="pair"))
    edit, _, _ = unlearn(GsLora, regularizers=(lasso,))
    groups = edit.facts["groups"]
    assert groups["kind"] == "pair"
    assert groups["zero_group_ratio"] == groups["zero_group_ratio_absolute"] == 1.0
    assert len(groups["zero"]) == 4
    assert not any(part.A.any() or part.B.any() for part in edit.parts.values())


def test_blocks_whose_whole_weights_came_back_are_zero_groups(unlearn):
    """Such an edit has no part for them."""
    lasso = GroupLasso(GroupLassoConfig(weight=1e5))
    edit, _, _ = unlearn(GsLora, regularizers=(lasso,), parameters=Full(FullConfig()))
    assert not edit.parts
    assert edit.facts["groups"]["zero"] == ["classifier.blocks.0", "classifier.blocks.1"]
    assert edit.facts["groups"]["zero_group_ratio"] == edit.facts["groups"]["zero_group_ratio_absolute"] == 1.0


def test_pruning_zeroes_what_is_nearly_zero(unlearn):
    settings = {"training": Training(steps=2, batch_size=2, lr=1e-8)}
    usual, _, _ = unlearn(GsLora, **settings)
    cut, _, _ = unlearn(GsLora, prune="hard", **settings)
    assert all(part.B.any() for part in usual.parts.values())
    assert not any(part.B.any() for part in cut.parts.values())
    assert usual.facts["groups"]["zero_group_ratio"] == cut.facts["groups"]["zero_group_ratio"] == 1.0
    assert edit_digest(usual) != edit_digest(cut)


def test_pruning_tells_what_it_does_to_accuracies(unlearn, monkeypatch):
    """Here every group is pruned, which takes all forgetting back."""
    monkeypatch.setattr("vu_gs_lora.gs_lora.pruned", lambda edit, norms: attrs.evolve(edit, parts={}))
    training = Training(steps=60, batch_size=4, lr=5e-2)
    edit, model, data = unlearn(GsLora, prune="hard", training=training, bound=0.1, forget_weight=1e-3)
    told = edit.facts["pruning"]
    assert set(told) == {"forget", "retain", "validation_forget", "validation_retain"}
    right = model.logits(data.retain.tensors["pixels"]).argmax(1) == data.retain.tensors["label"]
    assert told["retain"][1] == right.float().mean().item()
    assert told["retain"][0] > told["retain"][1]
    assert "pruning" not in unlearn(GsLora)[0].facts


def test_pruning_leaves_the_others_alone(unlearn):
    usual, cut = (unlearn(GsLora, prune=prune)[0] for prune in ("none", "hard"))
    assert cut.facts["groups"]["zero"] == []
    assert all(before == after for before, after in cut.facts["pruning"].values())
    assert usual.parts.keys() == cut.parts.keys()
    assert all(torch.equal(usual.parts[name].B, part.B) for name, part in cut.parts.items())


def test_retain_side_decides_the_length_of_an_epoch(tmp_path):
    training = GsLoraConfig().training
    assert (training.epoch_of, training.epochs, training.batch_size) == ("retain", 100, 48)
    assert (training.lr, training.min_lr, training.weight_decay) == (1e-2, 1e-5, 0.05)
    assert (training.decay_vectors, training.max_grad_norm, training.schedule) == (False, 0.0, "cosine")


def test_lora_of_other_targets_is_told(unlearn):
    lora = Lora(LoraConfig(rank=2, targets=("fc",)))
    with pytest.raises(PlanError) as caught:
        unlearn(GsLora, parameters=lora)
    assert caught.value.code == "VU-L031"
