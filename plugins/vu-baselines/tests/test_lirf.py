"""LIRF: halves, attention maps, the loss by hand, and the deposit."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F

import vu_core.training
from vu_baselines.lirf import DEPOSIT, Lirf, LirfConfig, LirfLosses, attention_map, halves
from vu_core import Batch, Edit, PlanError, Replace, TransformerBlock, UnlearnError
from vu_core.adapters import apply_edit, edit_digest, load_edit
from vu_core.testing import ToyClassifier, toy_forget_retain
from vu_core.training import Training

QUICK = Training(steps=4, batch_size=2, lr=1e-2)


class TwoBlocks(ToyClassifier):
    def blocks(self):
        return tuple(TransformerBlock(f"classifier.{part}", ("", "")) for part in ("conv", "hidden"))


def batch_of(examples, run) -> Batch:
    rows = tuple(range(len(examples)))
    return Batch(examples, rows, 0, rows, run, torch.device("cpu"), (0,) * len(rows))


@pytest.fixture
def moved(make_run, images):
    """The losses with a moved lower half, and a forget batch."""

    def make(**settings):
        model, run = TwoBlocks(), make_run()
        middle, targets = halves(model, run, False)
        losses = LirfLosses.of(model, images, run, LirfConfig(relabel="next", **settings), middle)
        batch = batch_of(losses.taught(images.forget), run)
        theta = run.parameterise(model, targets=targets)
        with torch.no_grad():
            for index, tensor in enumerate(theta.parameters()):
                tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        return attrs.evolve(losses, theta=theta), batch

    return make


def test_attention_is_the_mean_square_over_channels_of_length_one():
    tokens = torch.tensor([[[3.0, 3.0], [0.1, 0.1], [2.0, 2.0]]])  # (1, 3, 2)
    expected = torch.tensor([[9.0, 0.0, 4.0]]) / (81 + 16) ** 0.5  # 0.01 of 9.8 is below 0.005
    torch.testing.assert_close(attention_map(tokens), expected, rtol=1e-5, atol=1e-5)
    image = tokens.transpose(1, 2).reshape(1, 2, 3, 1)  # (1, channels, H, W)
    torch.testing.assert_close(attention_map(image), expected, rtol=1e-5, atol=1e-5)
    without = tokens[:, :, 0]
    torch.testing.assert_close(attention_map(without), expected, rtol=1e-5, atol=1e-5)


def test_the_upper_half_stays(images, make_run):
    edit = Lirf(LirfConfig()).unlearn(TwoBlocks(), images, make_run(training=QUICK))
    assert set(edit.parts) == {"classifier.conv.weight", "classifier.conv.bias"}
    whole = Lirf(LirfConfig(train_head=True)).unlearn(TwoBlocks(), images, make_run(training=QUICK))
    assert {name.rpartition(".")[0] for name in whole.parts} == {"classifier.conv", "classifier.fc"}


def test_the_loss_of_a_forget_batch(moved):
    settings = {"alpha": 0.3, "temperature": 5.0, "attention": 20.0, "attention_cap": 4.0, "other_logits": 7.0}
    losses, batch = moved(**settings)
    z, z_t = losses.model.logits(losses.model.images(batch)), batch["teacher_logits"]
    conv, x = losses.model.network["classifier"].conv, losses.model.images(batch)
    student = attention_map(conv(x))
    with losses.theta.base():
        teacher = attention_map(conv(x))
    at = (student - teacher).square().mean()
    assert 0 < 20 * at.item() < 4
    q_t, q = (z_t[:, 1:] / 5).softmax(1), (z[:, 1:] / 5).softmax(1)  # green and blue are kept
    kd = 25 * (q_t * (q_t / q).log()).sum(1).mean()
    wrong = F.cross_entropy(z, torch.ones(len(batch), dtype=torch.long))
    expected = 0.7 * wrong + (4 - 20 * at) + 7 * 0.3 * kd
    assert losses({"forget": batch})["forget"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_attention_that_is_far_enough_is_let_be(moved):
    losses, batch = moved(alpha=1.0, other_logits=0.0, attention=300.0, attention_cap=1e-6)
    assert losses({"forget": batch})["forget"].item() == 0


def test_the_retain_loss_is_the_cross_entropy(moved, images, make_run):
    losses, _ = moved(retained=4.0)
    batch = batch_of(images.retain, make_run())
    expected = 4 * F.cross_entropy(losses.model.logits(losses.model.images(batch)), losses.model.labels(batch))
    assert losses({"retain": batch})["retain"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_classes_are_told_apart_by_their_names_and_not_by_their_place(colour, make_run):
    model, run = TwoBlocks(), make_run()
    data = toy_forget_retain(run, f"colour:{colour}", model=model)
    losses = LirfLosses.of(model, data, run, LirfConfig(), "classifier.conv")
    assert [model.classes[index] for index in losses.others] == [name for name in model.classes if name != colour]


def test_the_deposit_knows_what_the_student_has_lost(images, make_run):
    training = Training(steps=60, batch_size=4, lr=3e-2, schedule="constant", weight_decay=0.0)
    run = make_run(training=training)
    model = TwoBlocks()
    edit = Lirf(LirfConfig(deposit=True, relabel="next")).unlearn(model, images, run)
    batch = batch_of(images.forget, run)

    def loss():
        return F.cross_entropy(model.logits(model.images(batch)), model.labels(batch)).item()

    deposit = load_edit(run.folder / DEPOSIT)
    assert edit.facts["deposit"] == DEPOSIT
    assert set(deposit.parts) <= {"classifier.conv.weight", "classifier.conv.bias"}
    with apply_edit(model.network, edit):
        lost = loss()
    with apply_edit(model.network, deposit):
        kept = loss()
    assert kept < 0.2 * lost


def test_the_deposit_leaves_the_student_as_it_is(images, make_run):
    edits = [
        Lirf(LirfConfig(deposit=deposit)).unlearn(TwoBlocks(), images, make_run(training=QUICK))
        for deposit in (False, True)
    ]
    assert edit_digest(attrs.evolve(edits[0], facts={})) == edit_digest(attrs.evolve(edits[1], facts={}))


def test_the_deposit_begins_with_the_student(images, make_run, monkeypatch):
    begins = []

    def fit(theta, losses, data, run, name="main"):
        begins.append({key: tensor.clone() for key, tensor in theta.state().items()})
        vu_core.training.fit(theta, losses, data, run, name)

    monkeypatch.setattr("vu_baselines.lirf.fit", fit)
    model = TwoBlocks()
    edit = Lirf(LirfConfig(deposit=True)).unlearn(model, images, make_run(training=QUICK))
    untouched = {name: model.network.get_parameter(name) for name in begins[0]}
    assert all(torch.equal(begins[0][name], tensor) for name, tensor in untouched.items())
    with apply_edit(model.network, edit):
        assert all(torch.equal(begins[1][name], model.network.get_parameter(name)) for name in untouched)


def test_a_deposit_that_was_interrupted_ends_as_one_that_was_not(images, make_run):
    deposits = []
    for stop in (None, 6):  # in the middle of the second phase
        run, seen = make_run(training=QUICK), []

        def press(event, seen=seen, stop=stop):
            if "loss_forget" in event.values:
                seen.append(event)
                if len(seen) == stop:
                    raise KeyboardInterrupt

        if stop is not None:
            run.emit_event = press
            with pytest.raises(KeyboardInterrupt):
                Lirf(LirfConfig(deposit=True)).unlearn(TwoBlocks(), images, run)
            assert not (run.folder / DEPOSIT).exists()
            run = attrs.evolve(run, resuming=True, emit_event=lambda event: None)
        Lirf(LirfConfig(deposit=True)).unlearn(TwoBlocks(), images, run)
        deposits.append(edit_digest(load_edit(run.folder / DEPOSIT)))
    assert deposits[0] == deposits[1]


def test_a_deposit_on_earlier_edits_is_refused(images, make_run):
    run = make_run(training=QUICK, earlier=(lambda: None,))
    with pytest.raises(PlanError) as caught:
        Lirf(LirfConfig(deposit=True)).unlearn(TwoBlocks(), images, run)
    assert caught.value.code == "VU-L124"


def test_one_block_has_no_halves(images, make_run, monkeypatch):
    monkeypatch.setattr(TwoBlocks, "blocks", lambda self: (TransformerBlock("classifier.conv", ("", "")),))
    with pytest.raises(PlanError) as caught:
        Lirf(LirfConfig()).unlearn(TwoBlocks(), images, make_run(training=QUICK))
    assert caught.value.code == "VU-L123"


def test_forgetting_every_class_is_refused(images, make_run):
    both = attrs.evolve(images, forget=attrs.evolve(images.retain, side="forget"))
    model, run = TwoBlocks(), make_run(training=QUICK)
    everything = attrs.evolve(both, forget=both.forget.with_tensors(label=torch.arange(len(both.forget)) % 3))
    with pytest.raises(UnlearnError) as caught:
        Lirf(LirfConfig()).unlearn(model, everything, run)
    assert caught.value.code == "VU-U138"


def test_another_teacher_gives_another_edit(images, make_run):
    edits = []
    for who in ("pretrained", "task-start"):
        model, original, run = TwoBlocks(), ToyClassifier(weights_seed=3), make_run(training=QUICK)
        parts = {name: Replace(tensor.clone()) for name, tensor in original.network.named_parameters()}
        run.earlier = (lambda model=model, parts=parts: apply_edit(model.network, Edit(parts)),)
        edits.append(edit_digest(Lirf(LirfConfig(teacher=who)).unlearn(model, images, run)))
    assert edits[0] != edits[1]
