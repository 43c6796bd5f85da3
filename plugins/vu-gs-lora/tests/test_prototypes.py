"""Prototypes, their distance from features, and what GS-LoRA++ adds."""

from __future__ import annotations

from contextlib import contextmanager

import attrs
import pytest
import torch
import torch.nn.functional as F
from toy_transformer import ToyTransformer, toy_tables

from vu_core import ConfigError, PlanError, UnlearnError
from vu_core.adapters import edit_digest
from vu_core.testing import toy_run
from vu_core.training import From, Training
from vu_gs_lora import prototypes as module
from vu_gs_lora.answers import Answer
from vu_gs_lora.gs_lora import GsLora
from vu_gs_lora.gs_lora_plus_plus import GsLoraPlusPlus, GsLoraPlusPlusConfig, PrototypeTerm
from vu_gs_lora.prototypes import Prototypes, class_prototypes, distances_kl


@pytest.fixture
def data(tmp_path):
    return toy_tables(toy_run(tmp_path / "data"))


def features_by_label(model, data):
    found = {}
    for table in (data.forget, data.retain):
        for feature, label in zip(model.features(table.tensors["pixels"]), table.tensors["label"], strict=True):
            found.setdefault(int(label), []).append(feature.detach())
    return found


@pytest.mark.parametrize("at_once", [256, 3])
def test_prototype_is_the_mean_of_the_training_images(data, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", at_once)
    model = ToyTransformer()
    found = class_prototypes(model, data, toy_run(tmp_path))
    expected = features_by_label(model, data)
    assert found.shape == (3, 6)
    for label, rows in expected.items():
        assert torch.allclose(found[label], torch.stack(rows).mean(0), atol=1e-6)
    assert not found.requires_grad


def test_class_without_images_has_no_prototype(data, tmp_path):
    blue = data.retain.tensors["label"] == 2
    rest = data.retain.take([row for row in range(len(data.retain)) if not blue[row]])
    found = class_prototypes(ToyTransformer(), attrs.evolve(data, retain=rest), toy_run(tmp_path))
    assert found.isnan().all(1).tolist() == [False, False, True]


def test_training_never_reads_such_a_prototype(data, unlearn):
    blue = data.retain.tensors["label"] == 2
    rest = data.retain.take([row for row in range(len(data.retain)) if not blue[row]])
    unlearn(GsLoraPlusPlus, data=attrs.evolve(data, retain=rest), prototype_retain_weight=1.0)


def test_reading_it_would_end_the_run(data, unlearn, monkeypatch):
    from vu_gs_lora import gs_lora_plus_plus

    holes = torch.full((3, 6), torch.nan)
    monkeypatch.setattr(gs_lora_plus_plus, "class_prototypes", lambda *_: holes)
    with pytest.raises(UnlearnError) as caught:
        unlearn(GsLoraPlusPlus, data=data)
    assert caught.value.code == "VU-U031"


def test_divergence_of_the_printed_example():
    p, h = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert distances_kl(h, p.log_softmax(1)).item() == pytest.approx(0.46212, abs=1e-5)


def test_divergence_has_the_prototype_first():
    p, h = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, -1.0]])
    wanted = (p.softmax(1) * (p.log_softmax(1) - h.log_softmax(1))).sum()
    swapped = (h.softmax(1) * (h.log_softmax(1) - p.log_softmax(1))).sum()
    assert distances_kl(h, p.log_softmax(1)).item() == pytest.approx(wanted.item())
    assert abs(wanted - swapped) > 0.05


@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_every_row_is_compared_with_its_own_class(distance):
    table, h = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)[:2]
    found = Prototypes.of(table, distance).distance_of(h, torch.tensor([2, 0]))
    each = [
        F.mse_loss(h[row], table[label])
        if distance == "mse"
        else F.kl_div(h[row].log_softmax(0), table[label].softmax(0), reduction="sum")
        for row, label in enumerate((2, 0))
    ]
    assert found.item() == pytest.approx(sum(each).item() / 2, rel=1e-5)


def term(epoch=0, task=0, **settings):
    """The term of both sides for one image at distance 4 (mse) from its prototype."""
    config = GsLoraPlusPlusConfig(prototype_distance="mse", **settings)
    answer = Answer(torch.zeros(1, 2), torch.tensor([1]), torch.full((1, 3), 2.0), epoch)
    of = PrototypeTerm(Prototypes.of(torch.zeros(2, 3), "mse"), config, task)
    return of("forget", answer).item(), of("retain", answer).item()


def test_terms_of_both_sides():
    forget, retain = term(prototype_bound=10.0, prototype_forget_weight=0.5, prototype_retain_weight=0.25)
    assert (forget, retain) == (0.5 * (10 - 4), 0.25 * 4)


def test_forget_term_is_zero_once_far_enough():
    assert term(prototype_bound=4.0)[0] == 0.0
    assert term(prototype_bound=3.0)[0] == 0.0
    assert term(prototype_bound=4.1)[0] > 0.0


def test_terms_per_task_and_from_an_epoch():
    assert term(task=1, prototype_bound=(5.0, 6.0), prototype_forget_weight=(1.0, 3.0))[0] == 6.0
    late = {"prototype_retain_weight": From(2, 0.5)}
    assert (term(epoch=1, **late)[1], term(epoch=2, **late)[1]) == (0.0, 2.0)
    with pytest.raises(ConfigError) as caught:
        term(task=2, prototype_bound=(5.0, 6.0))
    assert caught.value.code == "VU-C054"


@pytest.mark.parametrize("name", ["prototype_forget_weight", "prototype_retain_weight", "prototype_bound"])
def test_list_without_a_number_for_the_task_ends_the_run_before_any_prototype(name, unlearn, monkeypatch):
    from vu_gs_lora import gs_lora_plus_plus

    monkeypatch.setattr(gs_lora_plus_plus, "class_prototypes", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigError) as caught:
        unlearn(GsLoraPlusPlus, **{name: (0.5, 0.5)}, task=2)
    assert (caught.value.code, caught.value.where) == ("VU-C054", f"unlearner.{name}")


def test_without_weights_it_is_gs_lora(unlearn):
    plain, _, _ = unlearn(GsLora)
    none, _, _ = unlearn(GsLoraPlusPlus, prototype_forget_weight=0.0)
    both, _, _ = unlearn(GsLoraPlusPlus)
    assert edit_digest(plain) == edit_digest(none)
    assert edit_digest(plain) != edit_digest(both)


def test_features_and_logits_come_out_of_one_pass(unlearn):
    model = ToyTransformer()
    unlearn(GsLoraPlusPlus, model=model)
    assert model.passes == 2  # steps; the features of the prototypes ask for no logits


def test_prototypes_are_computed_once_however_long_the_training(data, unlearn, monkeypatch):
    model, asked = ToyTransformer(), []
    features = model.features
    monkeypatch.setattr(model, "features", lambda images: asked.append(len(images)) or features(images))
    unlearn(GsLoraPlusPlus, model=model, data=data, training=Training(steps=5, batch_size=2, lr=1e-2))
    assert asked == [len(data.forget), len(data.retain)]


def test_prototypes_are_those_of_the_original_model_unless_asked(unlearn, tmp_path):
    model = ToyTransformer()

    @contextmanager
    def pretrained():
        with torch.no_grad():
            model.network.classifier.patches.weight.mul_(3.0)
        yield
        with torch.no_grad():
            model.network.classifier.patches.weight.div_(3.0)

    settings = {"model": model, "prototype_forget_weight": 5.0}
    plain = [
        edit_digest(unlearn(GsLoraPlusPlus, **settings, earlier=within, prototype_source=source)[0])
        for within, source in (
            ((), "pretrained"),
            ((), "task-start"),
            ((pretrained,), "task-start"),
            ((pretrained,), "pretrained"),
        )
    ]
    assert plain[0] == plain[1] == plain[2]
    assert plain[3] != plain[0]


def test_classifier_that_names_no_head_is_refused(unlearn):
    class Headless(ToyTransformer):
        def __getattribute__(self, name):
            if name == "head":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(PlanError) as caught:
        unlearn(GsLoraPlusPlus, model=Headless())
    assert caught.value.code == "VU-L115"
