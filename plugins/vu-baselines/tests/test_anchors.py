"""The penalties L2, EWC and MAS: by hand, at the anchor, and in a sequence (baselines.md, truths 6 and 7)."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vu_baselines.ewc import EwcAnchor, EwcAnchorConfig
from vu_baselines.l2 import L2Anchor, L2AnchorConfig
from vu_baselines.mas import MasAnchor, MasAnchorConfig
from vu_core import Edit, Examples, ForgetRetain, PlanError, Replace
from vu_core.adapters import Carried, Full, FullConfig, Lora, LoraConfig, apply_edit
from vu_core.testing import ToyClassifier
from vu_core.testing.toy_denoiser import ToyDenoiser

ALL = [(L2Anchor, L2AnchorConfig), (EwcAnchor, EwcAnchorConfig), (MasAnchor, MasAnchorConfig)]


def prepared(kind, config, model, data, run, parameters=None):
    theta = (parameters or Full(FullConfig())).attach(model, run)
    regularizer = kind(config)
    with theta.base():
        regularizer.prepare(model, theta, data, run)
    return regularizer, theta


def shifted(theta, by=0.1):
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor += by


class OneWeight:
    """Answers x with the logits (w x, 0): the gradient of its cross entropy at w = 0 is -x / 2 or x / 2."""

    classes = ("a", "b")
    facts = SimpleNamespace(name="one weight")
    dtype = torch.float32

    def __init__(self, w: float = 0.0) -> None:
        self.network = nn.ModuleDict({"classifier": nn.Linear(1, 1, bias=False)})
        self.network["classifier"].weight.data.fill_(w)
        self.network.requires_grad_(False).eval()

    def images(self, batch):
        return batch["pixels"]

    def labels(self, batch):
        return batch["label"]

    def logits(self, images):
        z = self.network["classifier"](images)
        return torch.cat([z, torch.zeros_like(z)], dim=1)

    def features(self, images):
        return images


def table(side, x, y):
    columns = {"pixels": torch.tensor(x).reshape(-1, 1), "label": torch.tensor(y)}
    return Examples(side, ("",) * len(y), tensors=columns)


@pytest.fixture
def opposed():
    """Two retain examples whose gradients at w = 0 are -1 and +1."""
    retain = table("retain", [2.0, 2.0], [0, 1])
    return ForgetRetain(table("forget", [1.0], [0]), retain, retain, retain)


@pytest.mark.parametrize(("variant", "expected"), [("paper", 1.0), ("parity", 0.0)])
def test_opposed_gradients_add_up_in_the_fisher_information_of_the_paper_alone(variant, expected, opposed, make_run):
    model = OneWeight()
    found = EwcAnchor(EwcAnchorConfig(variant=variant)).importance(model, ["classifier.weight"], opposed, make_run())
    assert found["classifier.weight"].item() == pytest.approx(expected)


def test_the_fisher_information_of_the_released_code_is_scaled_by_the_batch(opposed, make_run):
    retain = table("retain", [2.0, 4.0, 6.0], [0, 0, 1])  # gradients -1, -2, +3
    data = ForgetRetain(opposed.forget, retain, retain, retain)
    found = {
        size: EwcAnchor(EwcAnchorConfig(variant="parity", batch_size=size))
        .importance(OneWeight(), ["classifier.weight"], data, make_run())["classifier.weight"]
        .item()
        for size in (1, 2)
    }
    assert found[1] == pytest.approx((1 + 4 + 9) / 3)
    assert found[2] == pytest.approx((1.5**2 + 3**2) * 2 / 2)


def test_mas_is_the_gradient_of_the_squared_length_of_each_answer(opposed, make_run):
    retain = table("retain", [1.0, 3.0], [0, 1])  # d (w x)^2 / dw = 2 w x^2 at w = -0.5: -1 and -9
    data = ForgetRetain(opposed.forget, retain, retain, retain)
    run, names = make_run(), ["classifier.weight"]
    paper = MasAnchor(MasAnchorConfig()).importance(OneWeight(-0.5), names, data, run)
    assert paper["classifier.weight"].item() == pytest.approx((1 + 9) / 2)
    parity = MasAnchor(MasAnchorConfig(variant="parity", batch_size=2)).importance(OneWeight(-0.5), names, data, run)
    assert parity["classifier.weight"].item() == pytest.approx((1 + 9) / 4)  # the mean over 2 examples of 2 logits


@pytest.mark.parametrize(("variant", "expected"), [("paper", 1.0), ("parity", 3.0 / 2)])
def test_mas_of_the_released_code_alone_takes_the_margin_off(variant, expected, opposed, make_run):
    class Margin(OneWeight):
        def margin_logits(self, images, labels):
            return self.logits(images) - torch.nn.functional.one_hot(labels, 2)

    retain = table("retain", [1.0], [0])  # (w x - 1)^2 at w = -0.5: a gradient of -3, without the margin -1
    data = ForgetRetain(opposed.forget, retain, retain, retain)
    mas = MasAnchor(MasAnchorConfig(variant=variant, batch_size=1))
    found = mas.importance(Margin(-0.5), ["classifier.weight"], data, make_run())
    assert found["classifier.weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (L2Anchor, L2AnchorConfig(strength=3.0), 3.0 * 0.2**2),
        (EwcAnchor, EwcAnchorConfig(strength=3.0), 3.0 / 2 * 1.0 * 0.2**2),
        (EwcAnchor, EwcAnchorConfig(strength=3.0, variant="parity", batch_size=1), 3.0 * 1.0 * 0.2**2),
        (MasAnchor, MasAnchorConfig(strength=3.0), 0.0),
    ],
)
def test_the_penalty_in_one_dimension(kind, config, expected, opposed, make_run):
    regularizer, theta = prepared(kind, config, OneWeight(), opposed, make_run())
    shifted(theta, 0.2)
    assert regularizer.penalty().item() == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "config"), ALL)
@pytest.mark.parametrize("parameters", [Full(FullConfig()), Lora(LoraConfig(rank=2))], ids=["full", "lora"])
def test_penalty_and_gradient_are_zero_at_the_anchor(kind, config, parameters, images, classifier, make_run):
    regularizer, theta = prepared(kind, config(strength=5.0), classifier, images, make_run(), parameters)
    penalty = regularizer.penalty()
    assert penalty.item() == 0
    assert not any(bool(g.any()) for g in torch.autograd.grad(penalty, theta.parameters()))
    shifted(theta)
    assert regularizer.penalty().item() > 0


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_denoisers_are_anchored_too(kind, config, latents, make_run):
    regularizer, theta = prepared(kind, config(), ToyDenoiser(), latents, make_run())
    shifted(theta)
    assert regularizer.penalty().item() > 0


def test_only_the_retain_examples_are_measured(images, classifier, make_run):
    other = ForgetRetain(images.retain, images.retain, images.retain, images.retain)
    names = ["classifier.conv.weight"]
    for kind, config in ALL[1:]:
        found = [kind(config()).importance(classifier, names, data, make_run()) for data in (images, other)]
        assert torch.equal(found[0][names[0]], found[1][names[0]])


@pytest.fixture
def edited(make_run):
    """A classifier that carries an earlier edit, which added 1 to every bias of its hidden layer, and its run."""
    model, run = ToyClassifier(), make_run()
    original = model.network.get_parameter("classifier.hidden.bias").clone()
    model.network.get_parameter("classifier.hidden.bias").data += 1

    @contextmanager
    def pretrained():
        with apply_edit(model.network, Edit({"classifier.hidden.bias": Replace(original)})):
            yield

    run.earlier = (pretrained,)
    return model, run


def test_in_a_sequence_the_model_of_the_files_is_an_anchor_too(edited, images):
    model, run = edited
    both, theta = prepared(L2Anchor, L2AnchorConfig(strength=1.0), model, images, run)
    assert both.penalty().item() == pytest.approx(8.0)  # eight biases, each 1 away from the files
    theta.detach()
    newest, theta = prepared(L2Anchor, L2AnchorConfig(strength=1.0, online=True), model, images, run)
    assert newest.penalty().item() == 0


def test_every_earlier_model_is_an_anchor(images, make_run):
    """Three edits that add 1 to eight biases each: the models of before are 3, 2 and 1 away from the start."""
    model, run = ToyClassifier(), make_run()
    bias = model.network.get_parameter("classifier.hidden.bias")
    edits = [Edit({"classifier.hidden.bias": Replace(bias.detach() + n)}) for n in (1.0, 2.0, 3.0)]
    carried = Carried(model.network, edits)
    run.earlier = tuple(partial(carried.earlier, count) for count in range(len(carried)))
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    penalties = {}
    for online in (False, True):
        config = L2AnchorConfig(strength=1.0, online=online)
        regularizer, theta = prepared(L2Anchor, config, model, images, run)
        penalties[online] = regularizer.penalty().item()
        theta.detach()
    assert penalties == {False: pytest.approx(8 * (9 + 4 + 1)), True: 0.0}
    assert all(torch.equal(before[name], p) for name, p in model.network.named_parameters())


@pytest.mark.parametrize(("kind", "config"), ALL[1:])
def test_importance_is_measured_at_every_anchor(kind, config, edited, images):
    model, run = edited
    regularizer, theta = prepared(kind, config(), model, images, run)
    state = regularizer.state()
    newest, first = (state[f"{index}.importance.classifier.fc.weight"] for index in (0, 1))
    assert not torch.equal(newest, first)
    with run.pretrained():
        names = [name for name, _ in theta.named_deltas()]
        alone = kind(config()).importance(model, names, images, run)
    assert not torch.equal(alone["classifier.fc.weight"], newest)


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_both_anchors_survive_a_checkpoint(kind, config, edited, images):
    model, run = edited
    regularizer, theta = prepared(kind, config(), model, images, run)
    shifted(theta)
    again = kind(config())
    again.load_state(regularizer.state(), theta)
    assert again.penalty().item() == regularizer.penalty().item() > 0


def test_mas_asks_classifiers_and_denoisers_alone(make_run, images):
    neither = SimpleNamespace(facts=SimpleNamespace(name="odd"), network=nn.ModuleDict())
    with pytest.raises(PlanError) as caught:
        MasAnchor(MasAnchorConfig()).importance(neither, [], images, make_run())
    assert caught.value.code == "VU-L122"
