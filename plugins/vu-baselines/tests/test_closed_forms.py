"""The methods that take no steps, and the soft threshold (baselines.md, section 2 and truth 1)."""

from __future__ import annotations

import attrs
import pytest
import torch
import torch.nn.functional as F

from vu_baselines.fisher_noise import FisherNoise, FisherNoiseConfig
from vu_baselines.head_mask import HeadMask, HeadMaskConfig
from vu_baselines.influence import Influence, InfluenceConfig, SampleGradients
from vu_baselines.noop import Noop, NoopConfig
from vu_baselines.random_drop import RandomDrop, RandomDropConfig
from vu_baselines.salun_soft import SalUnSoft, SalUnSoftConfig
from vu_baselines.soft_threshold import SoftThreshold, SoftThresholdConfig
from vu_core import PlanError, UnlearnError
from vu_core.adapters import apply_edit, edit_digest
from vu_core.testing import ToyClassifier
from vu_core.training import Training

SGD = Training(steps=4, batch_size=2, lr=0.05, schedule="constant", optimizer="sgd", momentum=0.0, weight_decay=0.0)


class Double(ToyClassifier):
    """The toy in float64 from end to end."""

    def __init__(self):
        super().__init__()
        self.network.double()

    def images(self, batch):
        return super().images(batch).double()

    def logits(self, images):
        return self._classifier(images)


def edited(model, edit):
    """Every weight under an edit."""
    with apply_edit(model.network, edit):
        return {name: p.detach().clone() for name, p in model.network.named_parameters()}


# Influence


def sample_gradients(model, examples):
    """Gradients of single examples, ``(N, P)``, in the plainest way."""
    weights, rows = list(model.network.parameters()), []
    for weight in weights:
        weight.requires_grad_(True)
    for pixels, label in zip(examples.tensors["pixels"], examples.tensors["label"], strict=True):
        loss = F.cross_entropy(model.logits(pixels[None].to(weights[0].dtype)), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    for weight in weights:
        weight.requires_grad_(False)
    return torch.stack(rows)


def removal(model, data):
    of_forget, of_retain = sample_gradients(model, data.forget), sample_gradients(model, data.retain)
    n_f, n_r = len(of_forget), len(of_retain)
    return of_forget.sum(0) / (n_f + n_r) - n_f / ((n_f + n_r) * n_r) * of_retain.sum(0)


def moved(model, edit):
    before = torch.cat([p.flatten() for p in model.network.parameters()])
    return torch.cat([p.flatten() for p in edited(model, edit).values()]) - before


@pytest.mark.parametrize(("alpha", "damping"), [(1.0, 1.0), (3.0, 0.01)])
def test_influence_is_the_dense_solve(alpha, damping, make_run, images):
    """Within 1e-8, in float64 (truth 1)."""
    model = Double()
    g, v = sample_gradients(model, images.retain), removal(model, images)
    fisher = damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)
    step = alpha * torch.linalg.solve(fisher, v)
    edit = Influence(InfluenceConfig(alpha=alpha, damping=damping)).unlearn(model, images, make_run())
    assert step.norm() > 1e-3
    assert (moved(model, edit) - step).norm() <= 1e-8 * step.norm()


def test_influence_takes_as_many_examples_as_told(make_run, images):
    model, run = Double(), make_run()
    g, v = sample_gradients(model, images.retain), removal(model, images)
    rows = torch.randperm(len(g), generator=run.generator("influence"))[:3]
    fisher = torch.eye(g.shape[1], dtype=torch.float64) + g[rows].T @ g[rows] / 3
    edit = Influence(InfluenceConfig(alpha=1.0, samples=3)).unlearn(model, images, run)
    torch.testing.assert_close(moved(model, edit), torch.linalg.solve(fisher, v), atol=1e-10, rtol=1e-8)


def test_portions_of_the_gradients_change_nothing(make_run, images):
    model = Double()
    gradients = SampleGradients(model, list(model.network.parameters()), make_run())
    told = []
    with gradients.differentiable():
        v, rows = gradients.of(images.retain, 0), [2, 0, 3]
        whole = gradients.products(images.retain, rows, v, lambda *numbers: None)
        small = gradients.products(images.retain, rows, v, lambda *numbers: told.append(numbers), 8 * 3 * 100)
    for one, other in zip(whole, small, strict=True):
        torch.testing.assert_close(one, other)
    assert told[-1] == (12, 12)  # 323 weights in portions of 100


def test_parity_is_the_recursion(make_run, images):
    model = Double()
    g, v = sample_gradients(model, images.retain), removal(model, images)
    n = 2
    k, o = v.clone(), g[0].clone()
    for row in g[1 : n + 2]:
        k, o = k - (k @ row) / (n + o @ row) * o, o - (o @ row) / (n + o @ row) * o
    edit = Influence(InfluenceConfig(alpha=1.0, samples=n, variant="parity")).unlearn(model, images, make_run())
    torch.testing.assert_close(moved(model, edit), k, atol=1e-12, rtol=1e-9)
    exact = Influence(InfluenceConfig(alpha=1.0, samples=n)).unlearn(model, images, make_run())
    assert not torch.allclose(moved(model, exact), k, rtol=1e-3)


def test_parity_has_no_damping():
    with pytest.raises(ValueError, match="damping"):
        InfluenceConfig(variant="parity", damping=2.0)


def test_influence_forgets(make_run, images, classifier):
    run = make_run()

    def loss(table):
        return F.cross_entropy(classifier.logits(table.tensors["pixels"]), table.tensors["label"])

    before = loss(images.forget)
    edit = Influence(InfluenceConfig(alpha=0.5)).unlearn(classifier, images, run)
    with apply_edit(classifier.network, edit):
        assert loss(images.forget) > before


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_influence_needs_both_sides(side, make_run, images, classifier):
    tables = {"forget": images.forget, "retain": images.retain}
    tables[side] = tables[side].take(())
    data = type(images)(tables["forget"], tables["retain"], images.validation_forget, images.validation_retain)
    with pytest.raises(UnlearnError, match=side) as caught:
        Influence(InfluenceConfig()).unlearn(classifier, data, make_run())
    assert caught.value.code == "VU-U135"


def test_a_step_that_is_not_finite_is_an_error(make_run, images, classifier):
    broken = images.forget.with_tensors(pixels=torch.full_like(images.forget.tensors["pixels"], float("nan")))
    data = type(images)(broken, images.retain, images.validation_forget, images.validation_retain)
    with pytest.raises(UnlearnError) as caught:
        Influence(InfluenceConfig()).unlearn(classifier, data, make_run())
    assert caught.value.code == "VU-U136"


# Fisher noise


@pytest.fixture
def fisher_run(make_run, make_axis):
    return make_run(attribution=make_axis("attribution", "fisher", side="retain"))


def noise(run, name, shape):
    return torch.randn(shape, generator=run.generator("fisher noise", name))


@pytest.mark.parametrize("variant", ["paper", "parity"])
def test_noise_has_the_size_that_fisher_allows(variant, fisher_run, images, classifier):
    g = sample_gradients(classifier, images.retain)
    fisher = g.square().mean(0).split([p.numel() for p in classifier.network.parameters()])
    alpha = {"paper": 1e-6, "parity": 1e-9}[variant]
    config = FisherNoiseConfig(alpha=alpha, largest=0.2, variant=variant)
    found = edited(classifier, FisherNoise(config).unlearn(classifier, images, fisher_run))
    capped = 0
    for (name, p), f in zip(classifier.network.named_parameters(), fisher, strict=True):
        largest = 1e-3 if variant == "parity" else 0.2 * float(p.square().mean().sqrt())
        sigma = (alpha / f.view_as(p)).sqrt()
        capped += int((sigma > largest).sum())
        sigma = sigma.clamp(max=largest)
        if variant == "parity" and p.shape[-1] == 3:  # as many as classes
            sigma = sigma * 10
        expected = p + sigma * noise(fisher_run, name, p.shape)
        torch.testing.assert_close(found[name], expected.detach(), atol=1e-5, rtol=1e-3)
    assert 0 < capped < g.shape[1]


def test_a_weight_without_information_is_lost_and_no_more(fisher_run, images, classifier):
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    mean, sigma = FisherNoise(FisherNoiseConfig()).moments("any", weight, torch.zeros(2, 2), classifier, [])
    assert torch.equal(mean, weight)
    torch.testing.assert_close(sigma, torch.full((2, 2), 2.5))


def test_fisher_new_draws_the_forgotten_row_anew(fisher_run, images, classifier):
    config = FisherNoiseConfig(alpha=1e-7, variant="fisher_new")
    method, red = FisherNoise(config), classifier.classes.index("red")
    for name, p in classifier.network.named_parameters():
        fisher = torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) * 1e-2
        mean, sigma = method.moments(name, p, fisher, classifier, [red])
        head = name.startswith("classifier.fc.")
        v = 1e-7 * (1 / (fisher + 1e-8)).clamp(max=1e2 if head else 1e3)
        v = v.mean(1, keepdim=True).expand_as(p).clone() if p.dim() > 1 else v
        expected = p.detach().clone()
        if head:
            expected[red], v[red] = 0.0, 1e-4
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(sigma, (v * (10 if head or p.dim() == 1 else 1)).sqrt())
    with_row = edited(classifier, method.unlearn(classifier, images, fisher_run))["classifier.fc.weight"]
    drawn = noise(fisher_run, "classifier.fc.weight", (3, 8))[red] * (1e-3) ** 0.5
    torch.testing.assert_close(with_row[red], drawn)


def test_fisher_looks_at_what_is_kept():
    assert FisherNoise.defaults["attribution"] == {"name": "fisher", "side": "retain"}


# Controls


@pytest.mark.parametrize("logit", [-1e4, -7.0, 0.0])
def test_the_head_mask_fixes_the_logits_of_the_forgotten_classes(logit, make_run, images, classifier):
    run, red = make_run(), classifier.classes.index("red")
    x = images.validation_forget.tensors["pixels"]
    before = classifier.logits(x)
    with apply_edit(classifier.network, HeadMask(HeadMaskConfig(logit=logit)).unlearn(classifier, images, run)):
        after = classifier.logits(x)
    assert torch.equal(after[:, red], torch.full((len(x),), logit))
    others = [k for k in range(3) if k != red]
    assert torch.equal(after[:, others], before[:, others])


def test_a_head_without_bias_can_only_be_zeroed(make_run, images, classifier):
    classifier._classifier.fc.bias = None
    with pytest.raises(PlanError, match="logit=0") as caught:
        HeadMask(HeadMaskConfig()).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-L119"
    edit = HeadMask(HeadMaskConfig(logit=0.0)).unlearn(classifier, images, make_run())
    assert set(edit.parts) == {"classifier.fc.weight"}


def test_a_head_without_rows_cannot_be_masked(make_run, images, classifier):
    classifier.head = "classifier.conv"
    with pytest.raises(PlanError) as caught:
        HeadMask(HeadMaskConfig()).unlearn(classifier, images, make_run())
    assert caught.value.code == "VU-L117"


def test_single_images_have_no_row_to_mask(make_run, images, classifier):
    mixed = type(images)(
        images.forget, images.forget.take(range(2)), images.validation_forget, images.validation_retain
    )
    with pytest.raises(UnlearnError, match="whole") as caught:
        HeadMask(HeadMaskConfig()).unlearn(classifier, mixed, make_run())
    assert caught.value.code == "VU-U134"


def test_random_drop_zeroes_a_share_of_each_tensor(make_run, images, classifier):
    shares = {}
    for seed in range(20):
        edit = RandomDrop(RandomDropConfig(largest_share=0.5)).unlearn(classifier, images, make_run(seed=seed))
        for name, p in edited(classifier, edit).items():
            before = classifier.network.get_parameter(name)
            assert torch.equal(p[p != 0], before[p != 0])
            shares.setdefault(name, []).append((p == 0).double().mean().item())
    conv = torch.tensor(shares["classifier.conv.weight"])
    assert conv.max() < 0.6
    assert conv.max() - conv.min() > 0.2
    assert conv.mean().item() == pytest.approx(0.25, abs=0.12)


def test_noop_says_that_it_changes_nothing(make_run, images, classifier):
    edit = Noop(NoopConfig()).unlearn(classifier, images, make_run())
    assert edit.may_be_identity
    assert not edit.parts


# Soft threshold


class Moved:
    """Trained tensors at a known distance from the base."""

    def __init__(self, model, run):
        self.theta = run.parameterise(model)
        with torch.no_grad():
            for p in self.theta.parameters():
                p.add_(torch.linspace(-1, 1, p.numel()).view_as(p))
        self.changes = torch.cat([delta.detach().flatten() for _, delta in self.theta.named_deltas()])


@pytest.mark.parametrize(("ratio", "step", "share"), [(0.5, 0, 0.375), (0.5, 1, 0.25), (0.8, 2, 0.2), (0.5, 3, 0.0)])
def test_the_smallest_changes_are_taken_back_and_the_others_shrink(ratio, step, share, make_run, images, classifier):
    run = make_run(training=SGD)
    regularizer, moved = SoftThreshold(SoftThresholdConfig(ratio=ratio)), Moved(classifier, run)
    regularizer.load_state({"steps": torch.tensor([step, 4])}, moved.theta)
    regularizer.after_step(torch.optim.SGD(moved.theta.parameters(), lr=0.1))
    found = torch.cat([delta.detach().flatten() for _, delta in moved.theta.named_deltas()])
    d, m = moved.changes, int(share * len(moved.changes))
    tau = d.abs().sort().values[m - 1] if m else torch.tensor(0.0)
    torch.testing.assert_close(found, d.sign() * (d.abs() - tau).clamp(min=0), atol=1e-6, rtol=0)
    assert m == 0 or m <= int((found.abs() < 1e-6).sum()) <= m + 20  # ties between tensors
    run.release()


def test_the_share_falls_over_the_training_and_the_base_stays_that_of_before(make_run, make_axis, images):
    """Of the five tensors, weights that are put back early may leave later."""
    counts = []

    class Watched:
        def __init__(self, inside):
            self.inside = inside

        def __getattr__(self, name):
            return getattr(self.inside, name)

        def after_step(self, optimizer):
            self.inside.after_step(optimizer)
            still = sum(int((p == base).sum()) for p, base in self.inside._places)
            counts.append(still)

    threshold = Watched(make_axis("regularizer", "soft-threshold", ratio=0.8))
    run = make_run(training=SGD, regularizers=(threshold,))
    model = ToyClassifier()
    SalUnSoft(SalUnSoftConfig()).unlearn(model, images, run)
    total = sum(p.numel() for p in model.network.parameters())
    assert len(counts) == 4
    assert [count / total for count in counts[:3]] == pytest.approx([0.6, 0.4, 0.2], abs=0.1)
    assert counts[0] > counts[1] > counts[2]


def test_the_share_falls_to_nothing_even_where_one_side_is_trained_on(make_run, make_axis, images):
    """Fine-tuning passes over the retain side alone, in larger batches than both sides would have."""
    threshold = make_axis("regularizer", "soft-threshold", ratio=0.8)
    training = attrs.evolve(SGD, steps=None, epochs=2, batch_size=8, epoch_of="retain")
    run = make_run(training=training, regularizers=(threshold,))
    SalUnSoft(SalUnSoftConfig(base_method="fine-tune")).unlearn(ToyClassifier(), images, run)
    assert threshold.state()["steps"].tolist() == [2, 2]  # 8 retain images at once; with 4 forget images 4 steps


def test_low_rank_factors_have_no_base_to_go_back_to(make_run, make_axis, images, classifier):
    threshold = make_axis("regularizer", "soft-threshold")
    run = make_run(training=SGD, regularizers=(threshold,), parameters=make_axis("parameters", "lora", rank=2))
    with pytest.raises(PlanError) as caught:
        SalUnSoft(SalUnSoftConfig()).unlearn(classifier, images, run)
    assert caught.value.code == "VU-L118"
    run.release()


def test_the_method_inside_gets_its_settings(make_run, make_axis, images):
    def digest(config):
        run = make_run(training=SGD, regularizers=(make_axis("regularizer", "soft-threshold"),))
        edit = SalUnSoft(config).unlearn(ToyClassifier(), images, run)
        assert edit.facts["base_method"] == config.base_method
        return edit_digest(type(edit)(edit.parts))

    usual = digest(SalUnSoftConfig())
    assert digest(SalUnSoftConfig(base={"relabel": "next"})) != usual
    assert digest(SalUnSoftConfig(base_method="gradient-ascent")) != usual


def test_without_threshold_or_training_it_is_an_error(make_run, make_axis, images, classifier):
    with pytest.raises(PlanError) as caught:
        SalUnSoft(SalUnSoftConfig()).unlearn(classifier, images, make_run(training=SGD))
    assert caught.value.code == "VU-L097"
    run = make_run(training=SGD, regularizers=(make_axis("regularizer", "soft-threshold"),))
    with pytest.raises(PlanError) as caught:
        SalUnSoft(SalUnSoftConfig(base_method="noop")).unlearn(classifier, images, run)
    assert caught.value.code == "VU-L096"


@pytest.mark.parametrize("name", ["salun", "salun-soft"])
def test_it_cannot_be_inside_itself(name):
    with pytest.raises(ValueError, match="another method"):
        SalUnSoftConfig(base_method=name)
