"""LwF, DER, DER++, FDR and relabelled forgetting: losses by hand, teachers, labels, and what is trained."""

from __future__ import annotations

from contextlib import contextmanager

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_baselines.anchored import AnchoredConfig
from vu_baselines.der import Der, DerConfig, distance
from vu_baselines.der_plus_plus import DerPlusPlus, DerPlusPlusConfig, another
from vu_baselines.ewc import Ewc, EwcAnchor
from vu_baselines.fdr import Fdr, FdrConfig, mean_length
from vu_baselines.l2 import L2, L2Anchor, L2AnchorConfig
from vu_baselines.lwf import Lwf, LwfConfig, soft_cross_entropy
from vu_baselines.mas import Mas, MasAnchor
from vu_baselines.relabelled import Relabelled, RelabelledConfig, published, trained, without_retain
from vu_baselines.scrub import divergence
from vu_baselines.teacher import Teacher
from vu_core import Batch, Edit, PlanError, Replace
from vu_core.adapters import Full, FullConfig, apply_edit, edit_digest
from vu_core.testing import ToyClassifier, ToyData
from vu_core.testing.toys import SIZE, ToyDataConfig
from vu_core.training import Training

QUICK = Training(steps=4, batch_size=2, lr=1e-2)


def batch_of(examples, run, rows=(0, 2, 1), passed=0, step=0) -> Batch:
    return Batch(examples, rows, step, tuple(range(len(rows))), run, torch.device("cpu"), (passed,) * len(rows))


# Distances


def test_distances_of_the_specification():
    student, teacher = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert distance(student, teacher, "paper").item() == pytest.approx(6.25)
    assert distance(student, teacher, "parity").item() == pytest.approx(25.0)
    assert mean_length(student - teacher).item() == pytest.approx(2.5)
    assert divergence(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0]]), 2.0).item() == pytest.approx(0.4931, abs=5e-5)


def test_softening_raises_probabilities_to_one_over_t():
    p = torch.tensor([[0.6, 0.3, 0.1]])
    for k, q in enumerate([0.4727, 0.3343, 0.1930]):
        z = 2.0 * torch.nn.functional.one_hot(torch.tensor([k]), 3)  # log q_s = z / 2 - c, so the loss tells q_t[k]
        c = torch.logsumexp(z / 2, dim=1).item()
        assert soft_cross_entropy(z, p.log(), 2.0).item() == pytest.approx(c - q, abs=1e-4)


def test_distillation_is_positive_and_finite_for_large_logits():
    generator = torch.Generator().manual_seed(0)
    z_t = 64 * torch.nn.functional.normalize(torch.randn(4, 10, generator=generator), dim=1)
    z = (64 * torch.randn(4, 10, generator=generator)).requires_grad_()
    loss = soft_cross_entropy(z, z_t, 2.0)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.item() > 0
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())
    assert bool(gradient.any())


def test_the_length_has_no_gradient_at_zero():
    rows = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(mean_length(rows), rows)
    assert torch.equal(gradient, torch.zeros(2, 3))


# Whole losses: what `fit` is handed, looked at with a moved network


@pytest.fixture
def losses_of(monkeypatch, images, make_run):
    """The losses of both sides of a method whose weights were moved, and the answers of before."""

    def make(method, data=None, model=None):
        model, run, seen = model or ToyClassifier(), make_run(), {}

        def fit(theta, losses, data, run, **_):
            with torch.no_grad():
                for index, tensor in enumerate(theta.parameters()):
                    tensor += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
            batches = {"forget": batch_of(data.forget, run), "retain": batch_of(data.retain, run)}
            seen.update(losses(batches))
            for side, batch in batches.items():
                seen[f"z_{side}"] = model.logits(model.images(batch)).float()
                seen[f"h_{side}"] = model.features(model.images(batch)).float()
                seen[f"y_{side}"] = model.labels(batch)
                with theta.base():
                    seen[f"z_t_{side}"] = model.logits(model.images(batch)).float()
                    seen[f"h_t_{side}"] = model.features(model.images(batch)).float()
            other = another(batches["retain"])
            seen["other"] = F.cross_entropy(model.logits(model.images(other)), model.labels(other))

        monkeypatch.setattr("vu_baselines.relabelled.fit", fit)
        method.unlearn(model, data or images, run)
        return seen

    return make


def test_the_forget_loss_is_the_cross_entropy_of_a_wrong_label(losses_of):
    for method in (Lwf(LwfConfig(relabel="next")), Der(DerConfig(relabel="next")), Fdr(FdrConfig(relabel="next"))):
        found = losses_of(method)
        expected = F.cross_entropy(found["z_forget"], (found["y_forget"] + 1) % 3)
        assert found["forget"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lwf_adds_the_softened_answers_of_before_and_the_labels(losses_of):
    found = losses_of(Lwf(LwfConfig(distillation=0.7, retained=3.0, temperature=4.0)))
    q_t, log_q = (found["z_t_retain"] / 4).softmax(1), (found["z_retain"] / 4).log_softmax(1)
    expected = -0.7 * (q_t * log_q).sum(1).mean() + 3 * F.cross_entropy(found["z_retain"], found["y_retain"])
    assert found["retain"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("variant", ["paper", "parity"])
def test_der_compares_logits_or_features(variant, losses_of):
    found = losses_of(Der(DerConfig(variant=variant, distillation=0.3)))
    squares = {
        "paper": (found["z_retain"] - found["z_t_retain"]).square().mean(),
        "parity": (found["h_retain"] - found["h_t_retain"]).square().sum(),
    }
    assert found["retain"].item() == pytest.approx(0.3 * squares[variant].item(), rel=1e-5)


def test_der_plus_plus_adds_the_labels_of_another_batch(losses_of):
    found = losses_of(DerPlusPlus(DerPlusPlusConfig(distillation=0.3, retained=0.8)))
    squares = (found["z_retain"] - found["z_t_retain"]).square().mean()
    assert found["retain"].item() == pytest.approx(0.3 * squares.item() + 0.8 * found["other"].item(), rel=1e-5)


def test_the_other_batch_changes_from_step_to_step(images, make_run):
    run = make_run()
    rows = [another(batch_of(images.retain, run, tuple(range(8)), step=step)).rows for step in range(4)]
    assert len(set(rows)) == 4
    assert set().union(*rows) == set(range(8))


def test_fdr_bounds_the_length_of_the_difference(losses_of):
    found = losses_of(Fdr(FdrConfig(distillation=0.3)))
    lengths = (found["z_retain"] - found["z_t_retain"]).square().sum(1).sqrt()
    assert found["retain"].item() == pytest.approx(0.3 * lengths.mean().item(), rel=1e-5)


def test_images_that_change_at_every_step_are_shown_to_the_teacher_each_time(losses_of, make_run):
    model, run = ToyClassifier(), make_run()
    toy = ToyData("", ToyDataConfig())
    built = toy.build(toy.parse(["colour:red"], []), resolution=SIZE, run=run)
    data = built.map(lambda examples: model.prepare(attrs.evolve(examples, reload=True), run))
    found = losses_of(Fdr(FdrConfig(distillation=0.3)), data, model)
    lengths = (found["z_retain"] - found["z_t_retain"]).square().sum(1).sqrt()
    assert found["retain"].item() == pytest.approx(0.3 * lengths.mean().item(), rel=1e-5)


# Teachers


@pytest.fixture
def edited(make_run):
    """A classifier that carries an earlier edit, which turned its head around, and its run."""
    model, run = ToyClassifier(), make_run(training=QUICK)
    original = model.network.get_parameter("classifier.fc.weight").clone()
    model.network.get_parameter("classifier.fc.weight").data *= -1

    @contextmanager
    def pretrained():
        with apply_edit(model.network, Edit({"classifier.fc.weight": Replace(original)})):
            yield

    run.earlier = (pretrained,)
    return model, run


@pytest.mark.parametrize("who", ["pretrained", "task-start"])
def test_the_teacher_is_the_model_of_the_files_or_that_of_the_start(who, edited, images):
    model, run = edited
    taught = Teacher.of_logits(model, run, who).taught(images.retain)
    before = ToyClassifier() if who == "pretrained" else model
    batch = batch_of(images.retain, run)
    torch.testing.assert_close(
        taught.tensors["teacher_logits"][[0, 2, 1]], before.logits(before.images(batch)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("method", "config"), [(Lwf, LwfConfig), (Der, DerConfig), (DerPlusPlus, DerPlusPlusConfig), (Fdr, FdrConfig)]
)
def test_another_teacher_gives_another_edit(method, config, edited, images, make_run):
    model, run = edited
    edits = []
    for who in ("pretrained", "task-start"):
        once = make_run(earlier=run.earlier)
        edits.append(edit_digest(method(config(teacher=who)).unlearn(model, images, once)))
    assert edits[0] != edits[1]


def test_the_teacher_is_asked_once_about_every_image(images, classifier, make_run, monkeypatch):
    asked = []
    logits = classifier.logits
    monkeypatch.setattr(classifier, "logits", lambda x: asked.append(torch.is_grad_enabled()) or logits(x))
    Der(DerConfig()).unlearn(classifier, images, make_run(training=QUICK))
    assert asked.count(False) == 1  # eight retain images at once, before training


# Labels


def test_a_wrong_label_is_any_other_one_and_stays_for_a_pass(images, classifier, make_run):
    run = make_run()
    forget = Relabelled.of(classifier, images, run, "uniform")
    drawn = torch.stack([forget.labels(batch_of(images.forget, run, (0, 1, 2, 3), passed)) for passed in range(40)])
    assert set(drawn.flatten().tolist()) == {1, 2}  # red is 0
    again = forget.labels(batch_of(images.forget, run, (3, 2, 1, 0), 7, step=9))
    assert again.tolist() == drawn[7].flip(0).tolist()


def test_the_labels_of_the_released_code_are_forgotten_classes_drawn_at_each_access(images, classifier, make_run):
    run = make_run()
    forget = Relabelled(classifier, "parity-mod-n", (0, 1))
    drawn = [forget.labels(batch_of(images.forget, run, (0, 1, 2, 3), step=step)).tolist() for step in range(20)]
    assert {label for labels in drawn for label in labels} == {1}  # of 0 and 1 the other one
    one = Relabelled(classifier, "parity-mod-n", (0, 1, 2))
    drawn = [one.labels(batch_of(images.forget, run, (0, 1, 2, 3), step=step)).tolist() for step in range(20)]
    assert {label for labels in drawn for label in labels} == {1, 2}
    assert len({tuple(labels) for labels in drawn}) > 5


def test_a_single_class_has_no_other_label(images, classifier, make_run):
    classifier.classes = ("red",)
    with pytest.raises(PlanError) as caught:
        Relabelled.of(classifier, images, make_run(), "uniform")
    assert caught.value.code == "VU-L095"


# What is trained


@pytest.mark.parametrize("method", [L2(AnchoredConfig()), Lwf(LwfConfig()), Der(DerConfig()), Fdr(FdrConfig())])
def test_all_but_the_head_is_trained(method, images, classifier, make_run):
    run = make_run(training=QUICK, regularizers=(L2Anchor(L2AnchorConfig()),))
    edit = method.unlearn(classifier, images, run)
    assert {name.rpartition(".")[0] for name in edit.parts} == {"classifier.conv", "classifier.hidden"}
    assert edit.facts["tuned_parameters"] == 323 - 27
    assert edit.facts["tunable_ratio"] == pytest.approx(296 / 323)
    run = make_run(training=QUICK, regularizers=(L2Anchor(L2AnchorConfig()),))
    whole = type(method)(attrs.evolve(method.config, train_head=True)).unlearn(classifier, images, run)
    assert "classifier.fc.weight" in whole.parts


def test_a_model_without_a_known_head_is_refused(classifier, make_run, monkeypatch):
    monkeypatch.delattr(ToyClassifier, "head")
    with pytest.raises(PlanError) as caught:
        trained(classifier, make_run(), False)
    assert caught.value.code == "VU-L115"
    assert "classifier.fc.weight" in trained(classifier, make_run(), True)


def test_training_the_head_alone_is_refused(classifier, make_run):
    with pytest.raises(PlanError) as caught:
        trained(classifier, make_run(parameters=Full(FullConfig(targets=("fc",)))), False)
    assert caught.value.code == "VU-L120"


def test_the_published_training():
    training = RelabelledConfig().training
    assert training == published(1e-4)
    assert (training.epochs, training.batch_size, training.min_lr, training.weight_decay) == (100, 48, 1e-5, 0.05)
    assert (training.schedule, training.decay_vectors, training.epoch_of) == ("cosine", False, "retain")
    assert [config().training.lr for config in (LwfConfig, DerConfig, DerPlusPlusConfig, FdrConfig)] == [
        1e-4,
        1e-3,
        1e-3,
        1e-3,
    ]
    assert FdrConfig().training.min_lr == 1e-8


# L2, EWC and MAS


def test_without_replay_no_retain_image_is_trained_on(images, classifier, make_run):
    garbled = attrs.evolve(images, retain=images.retain.with_tensors(label=(images.retain.tensors["label"] + 1) % 3))
    for replay, same in ((False, True), (True, False)):
        edits = []
        for data in (images, garbled):
            run = make_run(training=QUICK, regularizers=(L2Anchor(L2AnchorConfig()),))
            edits.append(edit_digest(L2(AnchoredConfig(replay=replay)).unlearn(classifier, data, run)))
        assert (edits[0] == edits[1]) == same


def test_the_anchors_see_the_retain_images_even_without_replay(images, classifier, make_axis, make_run):
    for name, method in (("ewc", Ewc), ("mas", Mas)):
        edits = []
        for data in (images, attrs.evolve(images, retain=images.retain.take((0, 1)))):
            run = make_run(training=QUICK, regularizers=(make_axis("regularizer", name, strength=1e3),))
            edits.append(edit_digest(method(AnchoredConfig(replay=False)).unlearn(classifier, data, run)))
        assert edits[0] != edits[1]


@pytest.mark.parametrize(("method", "anchor"), [(Ewc, EwcAnchor), (Mas, MasAnchor)])
def test_importance_is_measured_once_however_long_the_training(
    method, anchor, images, classifier, make_run, monkeypatch
):
    measured, importance = [], anchor.importance
    monkeypatch.setattr(anchor, "importance", lambda *given: measured.append(given[3]) or importance(*given))
    run = make_run(training=QUICK, regularizers=(anchor(anchor.Config()),))
    method(AnchoredConfig()).unlearn(classifier, images, run)
    assert [len(data.retain) for data in measured] == [len(images.retain)]


@pytest.mark.parametrize("method", [L2, Ewc, Mas])
def test_a_run_without_a_penalty_is_refused(method, images, classifier, make_run):
    with pytest.raises(PlanError) as caught:
        method(AnchoredConfig()).unlearn(classifier, images, make_run(training=QUICK))
    assert caught.value.code == "VU-L121"


def test_data_without_retain_side_keeps_everything_else(images):
    left = without_retain(images)
    assert (len(left.forget), len(left.retain)) == (len(images.forget), 0)
