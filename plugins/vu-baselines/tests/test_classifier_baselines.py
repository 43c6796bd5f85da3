"""The formulas of the methods for classifiers (baselines.md, section 2 and truths 1, 3 and 5)."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vu_baselines.boundary_expand import BoundaryExpand, BoundaryExpandConfig, Expanding, GrownHead
from vu_baselines.boundary_shrink import NEAREST, BoundaryShrink, BoundaryShrinkConfig, Shrinking, nearest_wrong
from vu_baselines.fine_tune import FineTune, FineTuneConfig
from vu_baselines.gradient_ascent import Ascent, GradientAscent, GradientAscentConfig, NegGradPlus, NegGradPlusConfig
from vu_baselines.l1_sparse import L1Sparse, L1SparseConfig, fading
from vu_baselines.rehearsal import Rehearsal, RehearsalConfig, remembered
from vu_baselines.supervised import l1_norm, retain_only
from vu_core import Batch, ConfigError, PlanError, UnlearnError
from vu_core.adapters import apply_edit, edit_digest
from vu_core.testing import ToyClassifier
from vu_core.training import Training

SGD = Training(steps=1, batch_size=4, lr=0.1, optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=0.0)


def batch_of(examples, run, rows=(0, 1, 2), step=0):
    return Batch(examples, rows, step, rows, run, torch.device("cpu"), (0,) * len(rows))


def accuracy(model, examples, run):
    batch = batch_of(examples, run, tuple(range(len(examples))))
    return (model.logits(model.images(batch)).argmax(1) == model.labels(batch)).double().mean().item()


def reference_loss(model, batch):
    log_p = model.logits(model.images(batch)).log_softmax(dim=1)
    return -log_p[torch.arange(len(batch)), model.labels(batch)].mean()


@pytest.fixture
def theta(make_run, classifier):
    run = make_run()
    yield run.parameterise(classifier)
    run.release()


# Fine-tuning and what stands on it


def test_fine_tuning_is_a_step_down_the_retain_loss(make_run, images, classifier):
    run = make_run(training=attrs.evolve(SGD, batch_size=100))
    edit = FineTune(FineTuneConfig()).unlearn(classifier, images, run)
    names, weights = zip(*classifier.network.named_parameters(), strict=True)
    n = min(len(images.retain), 100)
    for weight in weights:
        weight.requires_grad_(True)
    loss = reference_loss(classifier, batch_of(images.retain, run, tuple(range(n))))
    gradients = torch.autograd.grad(loss, weights)
    expected = {name: (w - 0.1 * g).detach() for name, w, g in zip(names, weights, gradients, strict=True)}
    with apply_edit(classifier.network, edit):
        for name, p in classifier.network.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], atol=1e-6, rtol=1e-5)


def test_the_l1_weight_falls_to_zero_over_the_epochs():
    assert [fading(1.0, e, 10, 0) for e in (0, 3, 6, 9)] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert [fading(2.0, e, 10, 4) for e in (0, 3, 6, 9)] == pytest.approx([2.0, 1.0, 0.0, 0.0])


def test_l1_sparse_penalises_what_is_trained_epoch_by_epoch(make_run, images, classifier, monkeypatch):
    seen = []
    monkeypatch.setattr("vu_baselines.l1_sparse.l1_norm", lambda theta: seen.append(theta) or l1_norm(theta))
    weights = []

    def watched(alpha, epoch, epochs, without):
        weights.append(fading(alpha, epoch, epochs, without))
        return weights[-1]

    monkeypatch.setattr("vu_baselines.l1_sparse.fading", watched)
    training = Training(epochs=4, batch_size=4, lr=1e-3, epoch_of="retain")
    L1Sparse(L1SparseConfig(alpha=0.8, epochs_without=2)).unlearn(classifier, images, make_run(training=training))
    steps = len(weights) // 4
    assert weights == pytest.approx([0.8] * steps + [0.4] * steps + [0.0] * 2 * steps)
    assert steps == -(-len(images.retain) // 4)


def test_l1_sparse_adds_the_gradient_of_the_norm(make_run, images):
    def weights(alpha):
        model, run = ToyClassifier(), make_run(training=SGD)
        with apply_edit(model.network, L1Sparse(L1SparseConfig(alpha=alpha)).unlearn(model, images, run)):
            return torch.cat([p.flatten() for p in model.network.parameters()])

    before = torch.cat([p.flatten() for p in ToyClassifier().network.parameters()])
    torch.testing.assert_close(weights(0.5) - weights(0.0), -0.1 * 0.5 * before.sign(), atol=1e-6, rtol=0)


def test_a_penalty_in_no_epoch_is_an_error(make_run, images, classifier):
    run = make_run(training=Training(epochs=3, batch_size=4))
    with pytest.raises(ConfigError, match="fine-tuning") as caught:
        L1Sparse(L1SparseConfig(epochs_without=3)).unlearn(classifier, images, run)
    assert caught.value.code == "VU-C147"


def test_the_memory_has_as_many_examples_of_each_class(make_run, images, classifier):
    run = make_run()
    for wanted in (1, 3):
        memory = remembered(classifier, images.retain, wanted, run)
        labels, counts = memory.tensors["label"].unique(return_counts=True)
        assert set(labels.tolist()) == set(images.retain.tensors["label"].tolist())
        assert set(counts.tolist()) == {wanted}
    assert len(remembered(classifier, images.retain, 1000, run)) == len(images.retain)
    other = remembered(classifier, images.retain, 1, make_run(seed=8)).tensors["pixels"]
    assert not torch.equal(remembered(classifier, images.retain, 1, run).tensors["pixels"], other)


def test_rehearsal_of_everything_is_fine_tuning(make_run, images):
    def digest(method):
        edit = method.unlearn(ToyClassifier(), images, make_run(training=SGD))
        return edit_digest(attrs.evolve(edit, facts={}))

    assert digest(Rehearsal(RehearsalConfig(per_class=1000))) == digest(FineTune(FineTuneConfig()))
    assert digest(Rehearsal(RehearsalConfig(per_class=1))) != digest(FineTune(FineTuneConfig()))


@pytest.mark.parametrize("method", [FineTune(FineTuneConfig()), Rehearsal(RehearsalConfig())])
def test_nothing_to_keep_is_an_error(method, make_run, images, classifier):
    nothing = attrs.evolve(images, retain=images.retain.take(()))
    with pytest.raises(UnlearnError) as caught:
        method.unlearn(classifier, nothing, make_run(training=SGD))
    assert caught.value.code == "VU-U034"


def test_one_sided_data_keep_the_other_tables(images):
    found = retain_only(images)
    assert (len(found.forget), found.retain, found.validation_forget) == (0, images.retain, images.validation_forget)


# Ascent


def test_ascent_is_the_negative_loss_up_to_the_cap(make_run, images, classifier, theta):
    run = make_run()
    batches = {"forget": batch_of(images.forget, run), "retain": batch_of(images.retain, run)}
    loss = {side: reference_loss(classifier, batch).item() for side, batch in batches.items()}
    free = Ascent(classifier, theta, None)(batches)
    assert free["forget"].item() == pytest.approx(-loss["forget"], rel=1e-5)
    assert free["retain"].item() == pytest.approx(loss["retain"], rel=1e-5)
    below, above = (Ascent(classifier, theta, loss["forget"] + gap)(batches)["forget"] for gap in (0.5, -0.001))
    assert below.item() == pytest.approx(0.5, rel=1e-4)
    assert above.item() == 0.0
    above.backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in theta.parameters())


def test_ascent_adds_the_l1_norm_to_the_forget_loss(make_run, images, classifier, theta):
    batches = {"forget": batch_of(images.forget, make_run()), "retain": batch_of(images.retain, make_run())}
    norm = sum(p.abs().sum().item() for p in classifier.network.parameters())
    plain, sparse = Ascent(classifier, theta, None)(batches), Ascent(classifier, theta, None, 0.01)(batches)
    assert (sparse["forget"] - plain["forget"]).item() == pytest.approx(0.01 * norm, rel=1e-4)
    assert torch.equal(sparse["retain"], plain["retain"])


def test_gradient_ascent_forgets_and_pays_nothing_for_the_retain_side(make_run, make_axis, images, classifier):
    asked = []
    images_of = classifier.images
    classifier.images = lambda batch: asked.append(batch.side) or images_of(batch)
    weighting = make_axis("weighting", "simple", forget_weight=1.0, retain_weight=0.0)
    training = Training(steps=20, batch_size=4, lr=5e-2, schedule="constant", weight_decay=0.0)
    run = make_run(training=training, weighting=weighting)
    edit = GradientAscent(GradientAscentConfig()).unlearn(classifier, images, run)
    assert set(asked) == {"forget"}
    with apply_edit(classifier.network, edit):
        assert accuracy(classifier, images.validation_forget, run) == 0.0


def test_ascent_without_end_ends_with_an_error(make_run, images, classifier):
    """Not with weights that are no numbers."""
    training = attrs.evolve(SGD, steps=60, lr=1e6)
    run = make_run(training=training)
    with pytest.raises(UnlearnError) as caught:
        GradientAscent(GradientAscentConfig()).unlearn(classifier, images, run)
    assert caught.value.code == "VU-U031"


def test_neg_grad_plus_weighs_the_ascent(make_run, make_axis, images):
    def weights(forget, method):
        weighting = make_axis("weighting", "simple", forget_weight=forget, retain_weight=1.0)
        model, run = ToyClassifier(), make_run(training=SGD, weighting=weighting)
        with apply_edit(model.network, method.unlearn(model, images, run)):
            return torch.cat([p.flatten() for p in model.network.parameters()])

    descent, half, full = (weights(x, NegGradPlus(NegGradPlusConfig())) for x in (0.0, 0.5, 1.0))
    torch.testing.assert_close(full - descent, 2 * (half - descent), atol=1e-6, rtol=1e-3)
    assert not torch.allclose(full, descent)


def test_defaults_say_which_side_counts():
    assert GradientAscent.defaults["weighting"] == {"name": "simple", "forget_weight": 1.0, "retain_weight": 0.0}
    assert NegGradPlus.defaults["weighting"] == {"name": "simple", "forget_weight": 0.1, "retain_weight": 1.0}
    for method in (BoundaryShrink, BoundaryExpand):
        assert method.defaults["weighting"]["retain_weight"] == 0.0


# Boundaries


class Lines(ToyClassifier):
    """Three classes on the first pixel p of an image in [0, 1]: below .3, from .3 to .6, above .6."""

    def logits(self, images):
        p = (images[:, 0, 0, 0] + 1) / 2
        return torch.stack([0 * p, p - 0.3, 2 * p - 0.9], dim=1)


@pytest.mark.parametrize(
    ("pixel", "label", "epsilon", "nearest"),
    [(0.25, 0, 0.1, 1), (0.55, 1, 0.1, 2), (0.65, 2, 0.1, 1), (0.25, 0, 0.5, 2), (0.9, 2, 0.1, 1)],
)
def test_the_nearest_wrong_class_is_across_the_boundary(pixel, label, epsilon, nearest):
    images = torch.full((1, 3, 8, 8), 2 * pixel - 1)
    config = BoundaryShrinkConfig(epsilon=epsilon)
    found = nearest_wrong(Lines(), images, torch.tensor([label]), config)
    assert found.tolist() == [nearest]


def test_parity_may_give_the_right_class_and_rounds_its_pixels():
    config, far = BoundaryShrinkConfig(variant="parity"), torch.full((1, 3, 8, 8), 2 * 0.9 - 1)
    assert nearest_wrong(Lines(), far, torch.tensor([2]), config).tolist() == [2]
    seen = []

    class Watched(Lines):
        def logits(self, images):
            seen.append(images.detach())
            return super().logits(images)

    nearest_wrong(Watched(), torch.full((1, 3, 8, 8), 0.9), torch.tensor([0]), config)
    levels = (seen[-1] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert seen[-1].max() == 1.0


def test_shrinking_teaches_the_labels_of_the_untouched_model(make_run, images, classifier, monkeypatch):
    """Found once per image, before anything moves."""
    found, trained_on = [], []
    monkeypatch.setattr(
        "vu_baselines.boundary_shrink.nearest_wrong",
        lambda *given: found.append(nearest_wrong(*given)) or found[-1],
    )
    loss = Shrinking._loss

    def watched(self, batch):
        if batch.side == "forget":
            trained_on.append(batch[NEAREST])
        return loss(self, batch)

    monkeypatch.setattr(Shrinking, "_loss", watched)
    config = BoundaryShrinkConfig(training=attrs.evolve(SGD, batch_size=3))
    BoundaryShrink(config).unlearn(classifier, images, make_run(training=attrs.evolve(SGD, steps=5)))
    assert sum(len(labels) for labels in found) == len(images.forget)
    red = classifier.classes.index("red")
    assert all(red not in labels.tolist() for labels in trained_on)
    assert len(trained_on) == 5


def test_images_that_change_get_their_labels_at_every_step(make_run, images, classifier, theta):
    run = make_run()
    batch = batch_of(images.forget, run)
    config = BoundaryShrinkConfig()
    with torch.no_grad():
        dict(theta.named_parameters())["classifier.fc.bias"].add_(torch.tensor([0.0, 5.0, 0.0]))
    loss = Shrinking(classifier, theta, config)({"forget": batch})["forget"]
    x, y = classifier.images(batch), classifier.labels(batch)
    wrong = nearest_wrong(ToyClassifier(), x, y, config)
    assert wrong.tolist() != nearest_wrong(classifier, x, y, config).tolist()
    torch.testing.assert_close(loss, F.cross_entropy(classifier.logits(x), wrong))


def test_shrinking_needs_another_class(make_run, images, classifier):
    classifier.classes = ("red",)
    with pytest.raises(PlanError) as caught:
        BoundaryShrink(BoundaryShrinkConfig()).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-L095"


@pytest.fixture
def grown(make_run, classifier):
    run = make_run()
    theta = GrownHead(run.parameterise(classifier), 8, run)
    yield theta, classifier, run
    run.release()


def test_expanding_adds_exactly_one_logit(grown, images):
    theta, model, run = grown
    x = model.images(batch_of(images.forget, run))
    z = Expanding(model, theta).logits(x)
    assert z.shape == (3, len(model.classes) + 1)
    assert torch.equal(z[:, :-1], model.logits(x))
    torch.testing.assert_close(z[:, -1], model.features(x) @ theta.weight + theta.bias)
    assert [p.shape for p in theta.parameters()[-2:]] == [(8,), ()]
    assert len(theta.parameters()) == len(dict(theta.named_parameters())) + 2


def test_forgotten_images_go_to_the_shadow_class_and_others_keep_theirs(grown, images):
    theta, model, run = grown
    batches = {"forget": batch_of(images.forget, run), "retain": batch_of(images.retain, run)}
    losses = Expanding(model, theta)
    found = losses(batches)
    log_p = {side: losses.logits(model.images(batch)).log_softmax(1) for side, batch in batches.items()}
    assert found["forget"].item() == pytest.approx(-log_p["forget"][:, -1].mean().item(), rel=1e-5)
    own = log_p["retain"][torch.arange(3), model.labels(batches["retain"])]
    assert found["retain"].item() == pytest.approx(-own.mean().item(), rel=1e-5)


def test_the_shadow_class_is_gone_after_training(make_run, make_axis, images, classifier):
    training = Training(steps=40, batch_size=4, lr=2e-2, schedule="constant", weight_decay=0.0)
    run = make_run(training=training)
    edit = BoundaryExpand(BoundaryExpandConfig()).unlearn(classifier, images, run)
    shapes = {name: p.shape for name, p in classifier.network.named_parameters()}
    assert set(edit.parts) <= set(shapes)
    with apply_edit(classifier.network, edit):
        assert {name: p.shape for name, p in classifier.network.named_parameters()} == shapes
        assert classifier.logits(torch.zeros(2, 3, 8, 8)).shape == (2, len(classifier.classes))
        assert accuracy(classifier, images.validation_retain, run) == 1.0


def test_the_shadow_class_learns(grown, images):
    theta, model, run = grown
    Expanding(model, theta)({"forget": batch_of(images.forget, run)})["forget"].backward()
    assert bool(theta.weight.grad.any())
    assert bool(theta.bias.grad.any())


def test_a_head_that_is_not_linear_cannot_grow(make_run, images, classifier):
    classifier._classifier.fc = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(PlanError, match="Sequential") as caught:
        BoundaryExpand(BoundaryExpandConfig()).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-L117"
