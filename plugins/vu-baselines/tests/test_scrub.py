"""SCRUB and SCRUB-S: turns, losses, signs and the moving mean (baselines.md, truth 8)."""

from __future__ import annotations

import itertools

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_baselines.scrub import Scrub, ScrubConfig, ScrubLosses, Turns, divergence, turns_of
from vu_baselines.scrub_s import ScrubS, ScrubSConfig
from vu_baselines.smoothing import Smoothing, SmoothingConfig
from vu_baselines.teacher import Teacher
from vu_core import Batch, ConfigError, Edit, Replace
from vu_core.adapters import apply_edit, edit_digest
from vu_core.testing import ToyClassifier
from vu_core.training import Training


def batch_of(examples, run, step=0) -> Batch:
    rows = tuple(range(len(examples)))
    return Batch(examples, rows, step, rows, run, torch.device("cpu"))


@pytest.fixture
def losses(images, make_run):
    """The losses of a network that stands where it began, with the batches of a step."""

    def make(moved=0.0, smoothing=None, **settings):
        model, run, config = ToyClassifier(), make_run(), ScrubConfig(**settings)
        teacher = Teacher.of_logits(model, run, "pretrained")
        data = images.map(teacher.taught)
        theta = run.parameterise(model)
        with torch.no_grad():
            for index, tensor in enumerate(theta.parameters()):
                tensor += moved * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        found = ScrubLosses(model, theta, teacher, Turns(1, 1, 2, 1), config, smoothing)
        return found, {"forget": batch_of(data.forget, run), "retain": batch_of(data.retain, run)}

    return make


def test_a_round_alternates_and_then_follows_the_retain_side():
    turns = Turns(forget_steps=2, retain_steps=3, inner_epochs=3, max_epochs=2)
    found = "".join(turns.side(step)[0] for step in range(turns.round_steps))
    assert found == "ffrrrffrrrrrr"
    assert [turns.side(step + turns.round_steps) for step in range(13)] == [turns.side(step) for step in range(13)]
    assert [turns.total(epochs) for epochs in (1, 2, 3, 4, 6)] == [5, 10, 13, 18, 26]


def test_turns_count_batches_of_both_sides(images, make_run):
    run = make_run(training=Training(epochs=10, batch_size=3, epoch_of="retain"))
    assert turns_of(images, run, ScrubConfig()) == Turns(2, 3, 10, 5)  # 4 forget and 8 retain images


def test_a_side_that_the_weighting_leaves_out_has_no_turn(images, make_run, make_axis):
    run = make_run(training=Training(epochs=10, batch_size=3), weighting=make_axis("weighting", "none"))
    assert {turns_of(images, run, ScrubConfig()).side(step) for step in range(30)} == {"forget"}
    alone = make_axis("weighting", "simple", forget_weight=0.0)
    run = make_run(training=Training(epochs=10, batch_size=3), weighting=alone)
    assert {turns_of(images, run, ScrubConfig()).side(step) for step in range(30)} == {"retain"}


def test_all_passes_are_made(images, make_run, classifier):
    steps = []
    run = make_run(
        training=Training(epochs=3, batch_size=3, lr=1e-3, epoch_of="retain"),
        emit_event=lambda event: steps.append(event.values["total"]) if "loss_retain" in event.values else None,
    )
    Scrub(ScrubConfig(inner_epochs=2, max_epochs=1)).unlearn(classifier, images, run)
    assert steps == [13] * 13  # a round of 2 + 3 + 3 steps, and 2 + 3 of the next
    steps.clear()
    run = attrs.evolve(run, folder=run.folder / "again", training=Training(steps=4, batch_size=3))
    Scrub(ScrubConfig()).unlearn(classifier, images, run)
    assert steps == [4] * 4


def test_losses_of_both_kinds_of_steps(losses):
    found, batches = losses(0.3, retained=2.0, distillation=0.5, temperature=3.0)
    forget, retain = (attrs.evolve(batches[side], step=step) for side, step in (("forget", 0), ("retain", 1)))
    model = found.model

    def kd(batch):
        z, z_t = model.logits(model.images(batch)), batch["teacher_logits"]
        q_t, q = (z_t / 3).softmax(1), (z / 3).softmax(1)
        return 9 * (q_t * (q_t / q).log()).sum(1).mean().item()

    assert found({"forget": forget})["forget"].item() == pytest.approx(-kd(forget), rel=1e-4)
    ce = F.cross_entropy(model.logits(model.images(retain)), model.labels(retain)).item()
    assert found({"retain": retain})["retain"].item() == pytest.approx(2 * ce + 0.5 * kd(retain), rel=1e-4)


def test_the_side_that_is_not_at_turn_is_zero(losses):
    found, batches = losses(0.3)
    at_forget = found({side: attrs.evolve(batch, step=0) for side, batch in batches.items()})
    at_retain = found({side: attrs.evolve(batch, step=1) for side, batch in batches.items()})
    assert at_forget["retain"].item() == 0
    assert at_forget["forget"].item() < 0
    assert at_retain["forget"].item() == 0
    assert at_retain["retain"].item() > 0
    gradients = torch.autograd.grad(at_forget["retain"], found.theta.parameters(), allow_unused=True)
    assert not any(g is not None and bool(g.any()) for g in gradients)


def test_max_steps_part_from_the_teacher_and_min_steps_follow_the_labels(losses):
    found, batches = losses(0.05)
    optimizer = torch.optim.Adam(found.theta.parameters(), lr=3e-3)

    def five_steps(loss):
        values = []
        for _ in range(6):
            value = loss()
            values.append(value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return values

    parted = five_steps(lambda: found.forget(batches["forget"]))
    assert all(after < before for before, after in itertools.pairwise(parted))  # -KD falls: KD rises
    model, retain = found.model, batches["retain"]
    ce = [F.cross_entropy(model.logits(model.images(retain)), model.labels(retain)).item()]
    five_steps(lambda: found.retain(retain))
    ce.append(F.cross_entropy(model.logits(model.images(retain)), model.labels(retain)).item())
    assert ce[1] < ce[0]


def test_beyond_the_cap_a_forget_batch_is_let_be(losses):
    found, batches = losses(0.3)
    z = found.model.logits(found.model.images(batches["forget"]))
    kd = divergence(z, batches["forget"]["teacher_logits"], 2.0).item()
    for cap in (kd / 2, kd * 2):
        capped = attrs.evolve(found, config=attrs.evolve(found.config, cap=cap))
        assert capped.forget(batches["forget"]).item() == pytest.approx(max(0.0, cap - kd), rel=1e-5)


def test_more_forget_passes_than_passes_are_refused():
    with pytest.raises(ValueError, match="max_epochs = 3 is more than inner_epochs = 2"):
        ScrubConfig(inner_epochs=2, max_epochs=3)


def test_turns_leave_no_room_for_an_exhausted_side():
    with pytest.raises(ValueError, match="exhausted must be 'cycle'"):
        ScrubConfig(training=Training(epochs=1, exhausted="retain_only"))


def test_without_any_turn_there_is_nothing_to_do(images, make_run, make_axis, classifier):
    run = make_run(training=Training(epochs=2, batch_size=3), weighting=make_axis("weighting", "none"))
    with pytest.raises(ConfigError) as caught:
        Scrub(ScrubConfig(max_epochs=0)).unlearn(classifier, images, run)
    assert caught.value.code == "VU-C150"


def test_another_teacher_gives_another_edit(images, make_run):
    edits = []
    for who in ("pretrained", "task-start"):
        model, original = ToyClassifier(), ToyClassifier(weights_seed=3)
        run = make_run()
        parts = {name: Replace(tensor.clone()) for name, tensor in original.network.named_parameters()}
        run.earlier = (lambda model=model, parts=parts: apply_edit(model.network, Edit(parts)),)
        config = ScrubConfig(teacher=who, distillation=1.0, inner_epochs=1, max_epochs=1)
        edits.append(edit_digest(Scrub(config).unlearn(model, images, run)))
    assert edits[0] != edits[1]


# SCRUB-S


def test_the_mean_moves_at_the_end_of_a_round(make_run, classifier, images):
    run = make_run()
    theta = run.parameterise(classifier)
    smoothing = Smoothing(SmoothingConfig(strength=2.0, decay=0.9, every=2))
    smoothing.prepare(classifier, theta, images, run)
    assert smoothing.distance().item() == 0
    optimizer = torch.optim.SGD(theta.parameters(), lr=0.0)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor += 1.0
    away = sum(tensor.numel() ** 0.5 for tensor in theta.parameters())
    for expected in (away, 0.9 * away, 0.9 * away, 0.81 * away):
        smoothing.after_step(optimizer)
        assert smoothing.distance().item() == pytest.approx(2 * expected, rel=1e-5)


def test_the_mean_survives_a_checkpoint(make_run, classifier, images):
    run = make_run()
    theta = run.parameterise(classifier)
    first = Smoothing(SmoothingConfig(strength=2.0, decay=0.5, every=2))
    first.prepare(classifier, theta, images, run)
    optimizer = torch.optim.SGD(theta.parameters(), lr=0.0)
    first.after_step(optimizer)
    second = Smoothing(SmoothingConfig(strength=2.0, decay=0.5, every=2))
    second.load_state(first.state(), theta)
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor += 1.0
    for smoothing in (first, second):
        smoothing.after_step(optimizer)
    assert first.distance().item() == second.distance().item() > 0
    away = sum(tensor.numel() ** 0.5 for tensor in theta.parameters())
    assert second.distance().item() == pytest.approx(2 * 0.5 * away, rel=1e-5)


def test_min_steps_alone_stay_near_the_mean(losses, make_run, images):
    smoothing = Smoothing(SmoothingConfig(strength=2.0, decay=0.9, every=9))
    found, batches = losses(0.3)
    smoothing.prepare(found.model, found.theta, images, make_run())
    with torch.no_grad():
        for tensor in found.theta.parameters():
            tensor += 0.1
    with_mean = attrs.evolve(found, smoothing=smoothing)
    assert with_mean.forget(batches["forget"]).item() == found.forget(batches["forget"]).item()
    more = with_mean.retain(batches["retain"]).item() - found.retain(batches["retain"]).item()
    assert more == pytest.approx(smoothing.distance().item(), rel=1e-3)


def test_without_smoothing_it_is_scrub(images, make_run):
    training = Training(epochs=4, batch_size=2, lr=1e-2, epoch_of="retain")
    rounds = {"inner_epochs": 2, "max_epochs": 1}
    plain = Scrub(ScrubConfig(**rounds)).unlearn(ToyClassifier(), images, make_run(training=training))
    smooth = ScrubS(ScrubSConfig(**rounds, smoothing=0.0)).unlearn(ToyClassifier(), images, make_run(training=training))
    assert edit_digest(plain) == edit_digest(smooth)
