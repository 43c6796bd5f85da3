"""The group lasso: its value, its gradient, the proximal update, its groups and its warm-up."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_transformer import ToyTransformer, toy_tables

from vu_core import ConfigError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.testing import toy_run
from vu_core.training import From, Training
from vu_gs_lora.group_lasso import GroupLasso, GroupLassoConfig


class Pairs:
    """Trained tensors by name, two per module, on a network without blocks."""

    def __init__(self, **tensors):
        self.tensors = {name: torch.tensor(values, requires_grad=True) for name, values in tensors.items()}
        self.model = SimpleNamespace(network=nn.Module())

    def named_parameters(self):
        yield from ((f"{name[0]}.{name[1]}", tensor) for name, tensor in self.tensors.items())

    def groups(self):
        modules = {name[0]: [] for name in self.tensors}
        for name, tensor in self.tensors.items():
            modules[name[0]].append(tensor)
        return modules

    def base(self):
        return nullcontext()


def bound(theta, **settings):
    """The regularizer on these tensors, no epochs."""
    lasso = GroupLasso(GroupLassoConfig(**settings))
    lasso.load_state({"progress": torch.tensor([0, 1, 0])}, theta)
    return lasso


def stepped(lasso, theta, lr, steps=1):
    """An SGD of this learning rate after the steps; the tensors had no gradient."""
    optimizer = torch.optim.SGD([tensor for _, tensor in theta.named_parameters()], lr=lr)
    for _ in range(steps):
        lasso.after_step(optimizer)
    return optimizer


@pytest.fixture
def five():
    return Pairs(pA=[3.0, 0.0], pB=[0.0, 4.0])


def test_penalty_of_three_and_four_is_five(five):
    penalty = bound(five, structure="subgradient", weight=1.0).penalty()
    penalty.backward()
    assert penalty.item() == 5.0
    assert torch.allclose(five.tensors["pA"].grad, torch.tensor([0.6, 0.0]))
    assert torch.allclose(five.tensors["pB"].grad, torch.tensor([0.0, 0.8]))


def test_weight_scales_the_penalty_and_groups_add_up():
    theta = Pairs(pA=[3.0], pB=[4.0], qA=[6.0], qB=[8.0])
    assert bound(theta, structure="subgradient", weight=0.1).penalty().item() == pytest.approx(1.5)
    apart = bound(theta, structure="subgradient", weight=0.1, groups="matrix").penalty()
    assert apart.item() == pytest.approx(2.1)


def test_size_weight_is_the_root_of_the_number_of_elements(five):
    assert bound(five, structure="subgradient", weight=1.0, size_weight="sqrt").penalty().item() == 10.0


def test_eps_is_added_under_the_root(five):
    assert bound(five, structure="subgradient", weight=1.0, eps=11.0).penalty().item() == 6.0


def test_eps_belongs_to_the_penalty_alone():
    with pytest.raises(ValueError, match="eps"):
        GroupLassoConfig(eps=0.1)


def test_gradient_of_a_zero_group_is_zero():
    theta = Pairs(pA=[0.0, 0.0], pB=[0.0], qA=[2.0], qB=[0.0])
    bound(theta, structure="subgradient", weight=1.0).penalty().backward()
    assert [tensor.grad.tolist() for tensor in theta.tensors.values()] == [[0.0, 0.0], [0.0], [1.0], [0.0]]


def test_proximal_update_takes_the_step_off_the_norm(five):
    lasso = bound(five, weight=5.0)
    assert lasso.penalty() is None
    stepped(lasso, five, lr=0.1)  # lr * alpha = 0.5 off a norm of 5
    assert torch.allclose(five.tensors["pA"], torch.tensor([2.7, 0.0]))
    assert torch.allclose(five.tensors["pB"], torch.tensor([0.0, 3.6]))


def test_size_weight_and_groups_of_the_proximal_update(five):
    stepped(bound(five, weight=5.0, size_weight="sqrt", groups="matrix"), five, lr=0.1)  # 0.5 * sqrt(2) off 3 and 4
    assert five.tensors["pA"].tolist() == pytest.approx([3 - 0.5**0.5, 0.0])
    assert five.tensors["pB"].tolist() == pytest.approx([0.0, 4 - 0.5**0.5])


def test_group_becomes_exactly_zero_and_stays(five):
    lasso = bound(five, weight=5.0)
    stepped(lasso, five, lr=1.0)
    assert not any(tensor.any() for tensor in five.tensors.values())
    stepped(lasso, five, lr=1.0)
    assert not any(tensor.any() for tensor in five.tensors.values())  # and no NaN of 0 / 0


def test_no_gradient_and_no_warm_up_leaves_zeros_alone():
    theta = Pairs(pA=[0.0], pB=[0.0])
    stepped(bound(theta, weight=0.0), theta, lr=1.0)
    assert [tensor.item() for tensor in theta.tensors.values()] == [0.0, 0.0]


def test_moments_are_cleared_where_a_group_becomes_zero():
    theta = Pairs(pA=[0.01], pB=[0.01], qA=[9.0], qB=[9.0])
    optimizer = torch.optim.AdamW(list(theta.tensors.values()), lr=0.1, weight_decay=0.0)
    for tensor in theta.tensors.values():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    optimizer.zero_grad()
    bound(theta, weight=5.0).after_step(optimizer)
    first = {name: optimizer.state[tensor]["exp_avg"].item() for name, tensor in theta.tensors.items()}
    second = {name: optimizer.state[tensor]["exp_avg_sq"].item() for name, tensor in theta.tensors.items()}
    assert first["pA"] == first["pB"] == second["pA"] == second["pB"] == 0.0
    assert first["qA"] == pytest.approx(0.1)
    assert second["qB"] == pytest.approx(0.001)
    for tensor in theta.tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    assert theta.tensors["pA"].item() == 0.0  # no momentum wakes it up


def attached(tmp_path, parameters=None, config=None, depth=12, **changes):
    """The regularizer prepared on a transformer: ``(lasso, theta, model)``."""
    model = ToyTransformer(depth)
    run = toy_run(tmp_path, parameters=parameters or Lora(LoraConfig(rank=2, targets=())), **changes)
    targets = None if parameters else [name for block in model.blocks() for name in block.ffn]
    theta = run.parameterise(model, targets=targets)
    lasso = GroupLasso(config or GroupLassoConfig())
    lasso.prepare(model, theta, toy_tables(run), run)
    return lasso, theta, model


@pytest.mark.parametrize(("groups", "count"), [("block", 12), ("pair", 24), ("matrix", 48)])
def test_number_of_groups(tmp_path, groups, count):
    lasso, theta, _ = attached(tmp_path, config=GroupLassoConfig(groups=groups, structure="subgradient", weight=1.0))
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.copy_(torch.full_like(tensor, (1 / tensor.numel()) ** 0.5))  # every tensor has norm 1
    assert lasso.penalty().item() == pytest.approx(count * (48 / count) ** 0.5, rel=1e-6)


def test_what_lies_outside_of_blocks_has_a_group_per_module(tmp_path):
    config = GroupLassoConfig(structure="subgradient", weight=1.0)
    lasso, theta, _ = attached(tmp_path, Full(FullConfig()), config, depth=1)
    assert lasso.penalty().item() == 0.0
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.flatten()[0] += 1.0
    # the block has 8 tensors (norm, attention, two linear maps), the patches and the head 2 each
    assert lasso.penalty().item() == pytest.approx(8**0.5 + 2 * 2**0.5, rel=1e-5)


def test_zero_groups_of_whole_weights_are_those_of_the_base(tmp_path):
    lasso, theta, model = attached(tmp_path, Full(FullConfig()), GroupLassoConfig(weight=1.0), depth=1)
    with torch.no_grad():
        for name, tensor in theta.named_parameters():
            tensor.add_(5.0 if "fc" in name else 0.001)
    lasso.after_step(torch.optim.SGD(theta.parameters(), lr=0.1))
    with theta.base():
        base = {name: tensor.clone() for name, tensor in model.network.named_parameters()}
    same = {name for name, tensor in theta.named_parameters() if torch.equal(tensor, base[name])}
    assert same == {name for name in base if "fc" not in name}


def test_weight_is_zero_before_its_epoch(tmp_path):
    training = Training(epochs=9, batch_size=2, epoch_of="retain")  # 8 retain images: 4 steps
    config = GroupLassoConfig(structure="subgradient", weight=From(2, 0.5))
    lasso, theta, _ = attached(tmp_path, config=config, training=training)
    seen = []
    for _ in range(10):
        seen.append(lasso.penalty() is not None)
        stepped(lasso, theta, lr=0.1)
    assert seen == [False] * 8 + [True] * 2
    constant = GroupLasso(GroupLassoConfig(structure="subgradient", weight=0.5))
    constant.load_state({"progress": torch.tensor([0, 1, 0])}, theta)
    assert lasso.penalty().item() == constant.penalty().item() > 0  # the whole weight at once


def test_proximal_update_begins_with_its_epoch_and_after_a_resume(tmp_path):
    training = Training(epochs=9, batch_size=2, epoch_of="retain")
    config = GroupLassoConfig(weight=From(1, 1e6))
    lasso, theta, _ = attached(tmp_path, config=config, training=training)
    stepped(lasso, theta, lr=0.1, steps=3)
    again = GroupLasso(config)
    again.load_state(lasso.state(), theta)
    stepped(again, theta, lr=0.1)
    assert theta.parameters()[0].any()  # the last step of the first epoch
    stepped(again, theta, lr=0.1)
    assert not theta.parameters()[0].any()


def test_weight_per_task(five):
    seen = []
    for task in (0, 1):
        lasso = GroupLasso(GroupLassoConfig(structure="subgradient", weight=(0.5, 2.0)))
        lasso.load_state({"progress": torch.tensor([0, 1, task])}, five)
        seen.append(lasso.penalty().item())
    assert seen == [2.5, 10.0]


def test_weight_without_a_number_for_the_task_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        attached(tmp_path, config=GroupLassoConfig(weight=(0.5, 2.0)), task=2)
    assert caught.value.code == "VU-C054"


def test_every_task_reads_its_own_number(tmp_path):
    lasso, _, _ = attached(tmp_path, config=GroupLassoConfig(weight=(0.5, 2.0)), task=1)
    assert lasso.state()["progress"].tolist() == [0, 1, 1]
