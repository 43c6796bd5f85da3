"""Elastic parameters in training: acceptance truths 12 and 13 (fade.md, section 11), and every field."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
import torch
from elastic_toys import SPACE, FirstGradient, toy_losses
from torch.utils.checkpoint import checkpoint

from vu_core import ConfigError
from vu_core.adapters import LoraConfig, LoraLayer, MaskedLora, apply_edit
from vu_core.testing import ToyWeighting
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.testing.toy_methods import ToyWeightingConfig
from vu_core.training import Training, fit
from vu_elastic_lora.elastic import ElasticLora, ElasticLoraConfig
from vu_elastic_lora.extraction import extracted
from vu_elastic_lora.groups import assigned

LAYERS = ("unet.attn1", "unet.attn2")


def by_layer(ranks):
    """Return the ranks of each attention, as a set."""
    return {layer: {rank for name, rank in ranks.items() if name.startswith(f"{layer}.")} for layer in LAYERS}


def tensors(edit):
    return {f"{name}.{side}": getattr(part, side) for name, part in edit for side in "AB"}


def equal(one, two):
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mask_of(name, share=3):
    weight = dict(ToyDenoiser().network.named_parameters())[name]
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask.view(-1)[::share] = True
    return mask


def test_12_a_space_of_three_ranks_trains_ten_steps(trained, ranks_now):
    done = trained(training=Training(steps=10, lr=1e-2), see=ranks_now)
    assert {rank for _, ranks in done.seen for rank in ranks.values()} == set(SPACE)
    for _, part in done.edit:
        assert part.A.shape[0] == part.B.shape[1] == 8
        assert torch.isfinite(part.delta()).all()
        assert part.delta().any()


def test_every_row_and_column_is_trained(trained):
    start = trained(training=Training(steps=1, lr=1e-12)).edit
    done = trained(training=Training(steps=30, lr=1e-2, weight_decay=0.0))
    for name, part in done.edit:
        assert ((part.A - start.parts[name].A).abs().amax(dim=1) > 1e-6).all(), "a row of A never moved"
        assert (part.B.abs().amax(dim=0) > 1e-6).all(), "a column of B never moved"


@pytest.mark.parametrize("weighting", [None, ToyWeighting(ToyWeightingConfig())], ids=["jointly", "side by side"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_12_ranks_are_constant_within_a_step(trained, ranks_now, accumulation, weighting):
    training = Training(steps=12, batch_size=1, accumulation=accumulation, lr=1e-2)
    done = trained(training=training, see=ranks_now, weighting=weighting)
    calls = accumulation * (1 if weighting is None else 2)
    for step in range(12):
        seen = [ranks for at, ranks in done.seen if at == step]
        assert len(seen) == calls
        assert all(ranks == seen[0] for ranks in seen), f"other ranks within step {step}"
    assert len({tuple(ranks.values()) for _, ranks in done.seen}) > 2, "every step has the same ranks"


def test_12_ranks_are_constant_through_recomputation(trained, monkeypatch):
    used = []
    forward = LoraLayer.forward

    def watched(layer, x):
        used.append((id(layer), layer.factors.A.shape[0]))
        return forward(layer, x)

    def recomputing(predict, *questions):
        return checkpoint(predict, *questions, use_reentrant=False)

    training = Training(steps=1, batch_size=3, lr=1e-2, weight_decay=0.0)
    plain = trained(training=training)
    monkeypatch.setattr(LoraLayer, "forward", watched)
    again = trained(training=training, losses=lambda model: toy_losses(model, recomputing))
    ranks = dict(used)
    assert set(used) == set(ranks.items()), "a layer is recomputed at another rank"
    assert len(used) == 4 * len(ranks), "two sides, each once forward and once recomputed"
    assert min(ranks.values()) < SPACE[0], "the draw of this seed cuts nothing; choose another"
    assert equal(again.edit, plain.edit)


def test_12_a_group_has_one_rank_and_groups_draw_for_themselves(trained, ranks_now):
    seen = [by_layer(ranks) for _, ranks in trained(training=Training(steps=10), see=ranks_now).seen]
    assert all(len(ranks) == 1 for step in seen for ranks in step.values())
    assert any(step[LAYERS[0]] != step[LAYERS[1]] for step in seen)


def test_with_pairs_every_weight_draws_for_itself(trained, ranks_now):
    config = ElasticLoraConfig(SPACE, groups="pair")
    seen = [by_layer(ranks) for _, ranks in trained(config, training=Training(steps=10), see=ranks_now).seen]
    assert any(len(ranks) > 1 for step in seen for ranks in step.values())


def drawn(theta, step, phase="main"):
    (within,) = theta.passes(step, phase)
    with within:
        return tuple(layer.factors.A.shape[0] for layer in theta.whole.layers.values())


def test_12_draws_come_from_seed_phase_and_step_alone(attached):
    theta = attached()
    first = [drawn(theta, step) for step in range(20)]
    assert first == [drawn(attached(), step) for step in range(20)], "a resumed run draws other ranks"
    assert first[::-1] == [drawn(theta, step) for step in reversed(range(20))], "draws depend on their order"
    assert len(set(first)) > 3, "steps draw the same ranks"
    assert first != [drawn(theta, step, "second") for step in range(20)], "phases draw the same ranks"
    assert first != [drawn(attached(seed=8), step) for step in range(20)], "seeds draw the same ranks"


def test_draws_are_uniform(attached):
    theta = attached(ElasticLoraConfig(SPACE, groups="pair"))
    count = Counter(rank for step in range(200) for rank in drawn(theta, step))
    assert set(count) == set(SPACE)
    assert all(abs(number / (200 * 8) - 1 / 3) < 0.04 for number in count.values()), count


@pytest.mark.parametrize("rank", SPACE)
@pytest.mark.parametrize("alpha", [None, 4.0])
def test_12_the_change_at_a_rank_is_the_truncation_at_the_scale_of_the_whole(attached, answer, rank, alpha):
    theta = attached(ElasticLoraConfig(SPACE, alpha=alpha))
    gamma = (16.0 if alpha is None else alpha) / 8
    edit = theta.edit()
    wanted = {name: gamma * part.B[:, :rank] @ part.A[:rank] for name, part in edit}
    with theta.set_active(dict.fromkeys(wanted, rank)):
        for name, delta in theta.named_deltas():
            torch.testing.assert_close(delta.detach(), wanted[name], rtol=0, atol=1e-6)
        seen = answer(theta.model)
    small = extracted(edit, dict.fromkeys(wanted, rank))
    for name, part in small:
        assert part.rank == rank
        torch.testing.assert_close(part.delta(), wanted[name], rtol=0, atol=1e-6)
    fresh = ToyDenoiser()
    with apply_edit(fresh.network, small):
        torch.testing.assert_close(answer(fresh), seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", SPACE)
def test_13_support_lies_in_the_mask_at_every_rank(trained, rank):
    masks = {f"unet.attn{i}.to_q.weight": mask_of(f"unet.attn{i}.to_q.weight", i + 1) for i in (1, 2)}
    done = trained(masks=masks, training=Training(steps=6, lr=1e-2))
    small = extracted(done.edit, dict.fromkeys(masks, rank))
    with done.theta.set_active(dict.fromkeys(masks, rank)):
        live = {name: delta.detach() for name, delta in done.theta.named_deltas()}
    for name, mask in masks.items():
        part = small.parts[name]
        gamma = done.edit.parts[name].alpha / 8
        torch.testing.assert_close(part.delta(), gamma * (part.B @ part.A) * mask, rtol=0, atol=1e-6)
        for delta in (part.delta(), live[name]):
            assert delta.any()
            assert not delta[~mask].any()


def test_outside_of_passes_the_whole_change_acts(attached, answer, ranks_now):
    theta = attached()
    whole = answer(theta.model)
    with theta.passes(0)[0]:
        pass
    assert torch.equal(answer(theta.model), whole)
    with theta.set_active("minimal"):
        assert set(ranks_now(theta).values()) == {2}
        assert not torch.equal(answer(theta.model), whole)
    with pytest.raises(RuntimeError), theta.set_active("minimal"):
        raise RuntimeError
    assert set(ranks_now(theta).values()) == {8}
    assert torch.equal(answer(theta.model), whole)


def test_a_pass_can_be_entered_again_and_within_other_ranks(attached, ranks_now):
    theta = attached()
    (within,) = theta.passes(3)
    seen = []
    for _ in range(2):
        with within:
            seen.append(ranks_now(theta))
    assert seen[0] == seen[1]
    with theta.set_active("minimal"):
        with within, theta.set_active("heuristic"):
            assert set(ranks_now(theta).values()) == {4}
        assert set(ranks_now(theta).values()) == {2}
    assert set(ranks_now(theta).values()) == {8}


@pytest.mark.parametrize(("version", "rank"), [("maximal", 8), ("heuristic", 4), ("minimal", 2)])
def test_set_active_takes_a_version_or_a_rank_for_every_weight(attached, ranks_now, version, rank):
    theta = attached()
    with theta.set_active(version):
        assert set(ranks_now(theta).values()) == {rank}
    mixed = {name: 4 if "attn1" in name else 2 for name in theta.whole.layers}
    with theta.set_active(mixed):
        assert ranks_now(theta) == mixed


def test_set_active_refuses_what_was_not_trained(attached):
    theta = attached()
    names = list(theta.whole.layers)
    for ranks in (
        dict.fromkeys(names, 3),
        dict.fromkeys(names[1:], 4),
        {**dict.fromkeys(names, 4), names[0]: 2},
        {**dict.fromkeys(names, 4), "unet.attn1.to_qq.weight": 4},
    ):
        with pytest.raises(ConfigError) as caught:
            theta.set_active(ranks)
        assert caught.value.code == "VU-C093"
    with pytest.raises(ValueError, match="'maximal', 'heuristic', 'minimal'"):
        theta.set_active("smallest")


def one_gradient(make_run, moved, config=None, active=None):
    """Return the gradient that the first step hands to the optimiser, from a moved start, and the fixed ranks' own."""
    watching = FirstGradient()
    run = make_run(
        parameters=ElasticLora(config or ElasticLoraConfig(SPACE)),
        training=Training(steps=1, lr=1e-3, max_grad_norm=0.0),
        regularizers=(watching,),
    )
    theta = moved(run.parameterise(ToyDenoiser()))
    if active is not None:
        theta.passes = lambda step, phase="main": (theta.set_active(active),)
    fit(theta, toy_losses(theta.model), toy_data(), run)
    theta.detach()
    return watching.gradient


def test_sandwich_trains_the_largest_the_smallest_and_the_drawn_ranks(make_run, moved, attached):
    sandwich = one_gradient(make_run, moved, ElasticLoraConfig(SPACE, sandwich=True))
    largest, smallest, random = (one_gradient(make_run, moved, active=each) for each in ("maximal", "minimal", None))
    assert not torch.allclose(largest, smallest, rtol=1e-2)
    assert not torch.allclose(random, smallest, rtol=1e-2)
    torch.testing.assert_close(sandwich, (largest + smallest + random) / 3, rtol=1e-4, atol=1e-7)
    assert len(attached(ElasticLoraConfig(SPACE, sandwich=True)).passes(0)) == 3
    assert len(attached(ElasticLoraConfig((4,), sandwich=True)).passes(0)) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_one_rank_is_the_lora_of_that_rank_bit_for_bit(trained, masked):
    masks = {"unet.attn1.to_q.weight": mask_of("unet.attn1.to_q.weight")} if masked else None
    one = trained(ElasticLoraConfig((4,), alpha=6.0, dropout=0.1), masks=masks).edit
    lora = trained(parameters=MaskedLora(LoraConfig(4, 6.0, 0.1)), masks=masks).edit
    assert equal(one, lora)
    assert all(part.alpha == lora.parts[name].alpha for name, part in one)


@pytest.mark.parametrize(
    "change",
    [
        {"search_space": (8, 3)},
        {"alpha": 3.0},
        {"dropout": 0.3},
        {"targets": ("to_q",)},
        {"groups": "pair"},
        {"sandwich": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_changes_the_numbers(trained, change):
    usual = trained(ElasticLoraConfig(SPACE)).edit
    assert not equal(trained(attrs.evolve(ElasticLoraConfig(SPACE), **change)).edit, usual)


def test_alpha_is_twice_the_largest_rank_when_absent(trained):
    assert {part.alpha for _, part in trained(ElasticLoraConfig(SPACE)).edit} == {16.0}
    assert equal(trained(ElasticLoraConfig(SPACE)).edit, trained(ElasticLoraConfig(SPACE, alpha=16.0)).edit)


def test_a_resumed_run_draws_and_ends_as_an_uninterrupted_one(trained, make_run, tmp_path):
    training = Training(steps=8, lr=1e-2, checkpoint_every=0.0)
    whole = trained(training=training).edit

    def stop(event):
        if event.type == "progress" and event.values["step"] == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        trained(run=make_run(training=training, folder=folder, emit_event=stop))
    resumed = trained(run=make_run(training=training, folder=folder, resuming=True))
    assert equal(resumed.edit, whole)
    assert resumed.seen == []


def test_the_edit_says_what_it_can_be_cut_to(attached):
    facts = attached(ElasticLoraConfig(SPACE, groups="pair")).edit().facts
    assert facts == {"elastic": {"search_space": [8, 4, 2], "groups": "pair", "scale": "alpha / r_max"}}


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ((), "at least one rank"),
        ((4, 8), "descending, but 8 follows 4"),
        ((8, 8, 4), "descending, but 8 follows 8"),
        ((8, 0), ">= 1"),
        ((8, -4), ">= 1"),
        ((8, 4.0), "whole numbers, but holds 4.0"),
        ((8, True), "whole numbers, but holds True"),
    ],
)
def test_12_a_space_that_is_not_strictly_descending_is_refused(space, problem):
    with pytest.raises(ValueError, match=problem):
        ElasticLoraConfig(space)


def test_gradients_of_a_smaller_rank_stay_in_its_rows_and_columns(attached):
    theta = attached()
    with theta.set_active(assigned(theta.rank_groups, "heuristic")):
        torch.stack([delta.square().sum() for _, delta in theta.named_deltas()]).sum().backward()
    for factors in theta.whole.factors.values():
        assert factors.A.grad[:4].any()
        assert factors.B.grad[:, :4].any()
        assert not factors.A.grad[4:].any()
        assert not factors.B.grad[:, 4:].any()
