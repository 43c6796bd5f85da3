"""FADE from data to edit: acceptance truths 5 to 8, 10, 11, 15, 16 and 18 (fade.md, section 11), and every field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from vu_attribution.magnitude import Magnitude, MagnitudeConfig
from vu_attribution.saliency import Saliency, SaliencyConfig
from vu_core import ConfigError, Edit, LowRank, UnlearnError, torch_dtype
from vu_core.adapters import Full, FullConfig, LoraConfig, LoraTheta, MaskedLora, apply_edit, load_edit, save_edit
from vu_core.cache import Cache, CachedAttribution
from vu_core.hard_mask import HardMask, HardMaskConfig
from vu_core.ops import top_masks
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.training import Training
from vu_core.training.processes import Processes
from vu_fade.fade import Distillation, Fade, FadeConfig, distil
from vu_fade.sparse_module import FadeSparseModule, FadeSparseModuleConfig, top_modules
from vu_fade.sparse_weight import FadeSparseWeight, FadeSparseWeightConfig
from vu_fade.teacher_bank import TeacherBank

TARGETS = {f"unet.attn{i}.{name}.weight" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")}


def deltas(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: part.delta() for name, part in edit}


def equal(one: Edit, two: Edit) -> bool:
    a, b = deltas(one), deltas(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def masked(rank: int = 2, alpha: float = 4.0) -> MaskedLora:
    return MaskedLora(LoraConfig(rank=rank, alpha=alpha))


def answers(model) -> torch.Tensor:
    z = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(
            z, torch.tensor([3, 30, 60, 90]), model.embed(["forget 0", "forget 1", "retain 0", "plain 0"])
        )


def test_training_lowers_the_forget_loss_and_leaves_the_model_as_it_was(model, data, make_run):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    losses = []
    run = make_run(training=Training(steps=60, lr=2e-2, batch_size=4, schedule="constant"))
    run.emit_event = lambda event: losses.append(event.values.get("loss_forget"))
    edit = Fade(FadeConfig()).unlearn(model, data, run)
    losses = [loss for loss in losses if loss is not None]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)  # truth 6
    assert set(edit.parts) == TARGETS
    assert any(delta.any() for delta in deltas(edit).values())


def test_the_edit_answers_the_forgotten_prompt_as_the_overwrite(model, data, make_run):
    run = make_run(training=Training(steps=150, lr=2e-2, batch_size=5, schedule="cosine"))
    edit = Fade(FadeConfig()).unlearn(model, data, run)
    z, t = torch.randn(32, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.full((32,), 50)

    def ask(caption):
        with torch.no_grad():
            return model.predict(z, t, model.embed([caption] * 32))

    forget, plain, retain = ask("forget 0"), ask("plain 0"), ask("retain 0")
    with apply_edit(model.network, edit):
        moved = (ask("forget 0") - plain).square().mean() / (forget - plain).square().mean()
        kept = (ask("retain 0") - retain).square().mean() / (forget - plain).square().mean()
    assert moved < 0.5
    assert kept < 0.2


def test_5_equal_prompts_never_move_the_adapter(model, make_run):
    data = toy_data()
    data = attrs.evolve(data, forget=attrs.evolve(data.forget, overwrites=data.forget.captions))
    edit = Fade(FadeConfig()).unlearn(model, data, make_run())
    assert not any(delta.any() for delta in deltas(edit).values())


def test_5_the_same_with_a_teacher_bank(model, make_run):
    data = toy_data()
    data = attrs.evolve(data, forget=attrs.evolve(data.forget, overwrites=data.forget.captions))
    edit = Fade(FadeConfig(teacher_bank=7)).unlearn(model, data, make_run())
    assert not any(delta.any() for delta in deltas(edit).values())


def test_6_every_adapter_tensor_moves(model, data, make_run):
    # Without weight decay, so that only a gradient can move a tensor.
    run = make_run(training=Training(steps=4, lr=1e-2, weight_decay=0.0))
    start = {name: tensor.clone() for name, tensor in make_run().parameterise(ToyDenoiser()).state().items()}
    edit = Fade(FadeConfig()).unlearn(model, data, run)
    assert set(edit.parts) == TARGETS
    for name, part in edit:
        assert not torch.equal(part.A, start[f"{name}.A"]), name
        assert not torch.equal(part.B, start[f"{name}.B"]), name
    assert edit.facts["tuned_parameters"] == sum(part.A.numel() + part.B.numel() for _, part in edit)


def test_the_same_seed_gives_the_same_edit_and_the_model_can_be_used_again(model, data, make_run):
    method = Fade(FadeConfig())
    first = method.unlearn(model, data, make_run(3))
    assert equal(first, method.unlearn(model, data, make_run(3)))
    assert not equal(first, method.unlearn(model, data, make_run(4)))


def test_the_global_generator_and_grad_mode_are_left_alone(model, data, make_run):
    state = torch.get_rng_state()
    Fade(FadeConfig(teacher_bank=4)).unlearn(model, data, make_run())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert not any(p.requires_grad for p in model.network.parameters())


def test_the_adapter_comes_off_when_training_fails(model, data, make_run, monkeypatch):
    def broken(batch):
        raise RuntimeError("broken")

    modules = [id(module) for module in model.network.modules()]
    monkeypatch.setattr(model, "latents", broken)
    with pytest.raises(RuntimeError, match="broken"):
        Fade(FadeConfig()).unlearn(model, data, make_run())
    assert [id(module) for module in model.network.modules()] == modules


FADE_FIELDS = [
    {"noise_offset": 0.3},
    {"timestep_low": 60},
    {"timestep_high": 20},
    {"teacher_bank": 3},
    {"retain_sampling": "with_replacement"},
]


@pytest.mark.parametrize("change", FADE_FIELDS, ids=lambda change: next(iter(change)))
def test_each_field_of_fade_changes_the_edit(change, model, data, make_run):
    assert not equal(
        Fade(FadeConfig()).unlearn(model, data, make_run()), Fade(FadeConfig(**change)).unlearn(model, data, make_run())
    )


def test_no_field_of_a_config_is_untested():
    tested = {name for change in FADE_FIELDS for name in change} | {"training", "split_backward"}
    assert {field.name for field in attrs.fields(FadeConfig)} == tested
    assert {field.name for field in attrs.fields(FadeSparseModuleConfig)} == tested | {"sparsity_inclusiveness"}
    assert {f.name for f in attrs.fields(FadeSparseWeightConfig)} == tested | {
        "sparsity_inclusiveness",
        "mask_scope",
        "ties",
    }


def test_split_backward_changes_memory_only(model, data, make_run):
    one = Fade(FadeConfig()).unlearn(model, data, make_run())
    two = Fade(FadeConfig(split_backward=True)).unlearn(model, data, make_run())
    assert attrs.fields(FadeConfig).split_backward.metadata["speed_only"]
    for name, delta in deltas(one).items():
        torch.testing.assert_close(delta, deltas(two)[name], rtol=1e-2, atol=1e-4)


class TestTeacherBank:
    def test_its_answers_are_computed_once(self, model, data, make_run, monkeypatch):
        passes = []
        predict = model.predict

        def counting(noisy, t, c):
            passes.append((torch.is_grad_enabled(), len(noisy)))
            return predict(noisy, t, c)

        monkeypatch.setattr(model, "predict", counting)
        Fade(FadeConfig(teacher_bank=5)).unlearn(model, data, make_run(training=Training(steps=6, batch_size=2)))
        # The last portion has one row of each side and is filled up: all passes are as large as those of the student.
        assert [size for grad, size in passes if not grad] == [4, 4, 4]
        assert [size for grad, size in passes if grad] == [4] * 6

    def test_no_side_of_it_is_through_before_the_other(self):
        FadeConfig(training=Training(steps=6, exhausted="retain_only"))
        with pytest.raises(ValueError, match="starts over"):
            FadeConfig(teacher_bank=5, training=Training(steps=6, exhausted="retain_only"))

    def test_epochs_count_the_forget_examples_and_not_the_bank(self, model, data, make_run):
        steps = []
        run = make_run(training=Training(epochs=2, batch_size=2))
        run.emit_event = lambda event: (
            steps.append(event.values.get("total")) if "loss_forget" in event.values else None
        )
        Fade(FadeConfig(teacher_bank=50)).unlearn(model, data, run)
        assert set(steps) == {6}  # 2 passes over 5 examples in batches of 2

    def test_its_steps_count_the_processes_of_the_training(self, data, make_run, monkeypatch):
        # The group is started by the first to ask, so what torch.distributed says before that is not the answer.
        monkeypatch.setattr("vu_core.training.loop.process_group", lambda device: Processes(count=2))
        run, model = make_run(training=Training(epochs=4, batch_size=1)), ToyDenoiser()
        losses = Distillation.of(model, run.parameterise(model), FadeConfig())
        _, bank_run = TeacherBank(losses, 3).fill(data, run)
        assert (bank_run.training.steps, bank_run.training.epochs) == (12, None)  # 4 passes over 5 examples in twos

    def test_a_table_with_a_column_called_teacher_is_no_bank(self, model, data, make_run):
        named = attrs.evolve(data, forget=data.forget.with_tensors(teacher=torch.zeros(5, 1)))
        plain, other = (Fade(FadeConfig()).unlearn(model, table, make_run()) for table in (data, named))
        assert equal(plain, other)

    def test_a_large_bank_comes_close_to_a_fresh_teacher(self, model, data, make_run):
        training = Training(steps=80, lr=1e-2, batch_size=4)
        fresh = Fade(FadeConfig()).unlearn(model, data, make_run(training=training))
        bank = Fade(FadeConfig(teacher_bank=256)).unlearn(model, data, make_run(training=training))
        a, b = (torch.cat([d.flatten() for d in deltas(edit).values()]) for edit in (fresh, bank))
        assert torch.cosine_similarity(a, b, dim=0) > 0.8

    @pytest.mark.parametrize("sampling", ["cycle", "with_replacement"])
    @pytest.mark.parametrize(("weights", "precision"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")])
    def test_an_untouched_student_gives_its_answers_bit_for_bit(self, sampling, weights, precision, data, make_run):
        model, losses = ToyDenoiser(), []
        model.network.to(torch_dtype(weights))
        run = make_run(training=Training(steps=1, batch_size=2), precision=precision)
        run.emit_event = lambda event: losses.append(event.values["loss_retain"]) if "lr" in event.values else None
        Fade(FadeConfig(teacher_bank=6, retain_sampling=sampling)).unlearn(model, data, run)
        assert losses == [0.0]

    def test_it_is_asked_as_the_student_will_be(self, model, data, make_run, make_axis, monkeypatch):
        passes = []
        predict = model.predict

        def counting(noisy, t, c):
            passes.append((torch.is_grad_enabled(), len(noisy)))
            return predict(noisy, t, c)

        monkeypatch.setattr(model, "predict", counting)
        for config, weighting, sizes in (
            (FadeConfig(teacher_bank=5), Opposing(), [2] * 6),
            (FadeConfig(teacher_bank=5, split_backward=True), None, [2] * 6),
            (FadeConfig(teacher_bank=5), make_axis("weighting", "none"), [2] * 3),  # forget alone is in use
        ):
            passes.clear()
            axes = {} if weighting is None else {"weighting": weighting}
            Fade(config).unlearn(model, data, make_run(training=Training(steps=6, batch_size=2), **axes))
            assert [size for grad, size in passes if not grad] == sizes
            assert {size for grad, size in passes if grad} == {2}

    def test_regularizers_look_at_the_data_and_not_at_the_bank(self, model, data, make_run):
        class Spy:
            side, seen = "outside", ()

            def prepare(self, model, theta, data, run):
                self.seen = (*self.seen, data)

            def penalty(self):
                return None

            def after_step(self, optimizer):
                pass

            def state(self):
                return {}

        spy = Spy()
        Fade(FadeConfig(teacher_bank=6)).unlearn(model, data, make_run(regularizers=(spy,)))
        assert len(spy.seen) == 1
        assert spy.seen[0] is data

    def test_a_finished_phase_needs_no_bank(self, model, data, make_run, monkeypatch):
        method, run = Fade(FadeConfig(teacher_bank=5)), make_run()
        first = method.unlearn(model, data, run)
        monkeypatch.setattr(model, "predict", lambda *arguments: pytest.fail("the network was asked again"))
        assert equal(method.unlearn(model, data, make_run(folder=run.folder, resuming=True)), first)

    @pytest.mark.parametrize("index", [0, 1])
    def test_only_the_first_process_tells_about_it(self, index, data, make_run, monkeypatch):
        monkeypatch.setattr("vu_fade.teacher_bank.process_group", lambda device: Processes(count=2, index=index))
        told, run, model = [], make_run(), ToyDenoiser()
        run.emit_event = lambda event: told.append((event.values["step"], event.values["total"]))
        losses = Distillation.of(model, run.parameterise(model), FadeConfig())
        TeacherBank(losses, 5).fill(data, run)
        assert told == ([] if index else [(2, 5), (4, 5), (5, 5)])

    def test_every_row_is_used_in_turn(self, model, data, make_run, monkeypatch):
        rows = []
        latents = model.latents
        monkeypatch.setattr(model, "latents", lambda batch: rows.append((batch.side, batch.rows)) or latents(batch))
        Fade(FadeConfig(teacher_bank=10)).unlearn(model, data, make_run())
        forget = [row for side, part in rows if side == "forget" for row in part]
        assert sorted(forget) == sorted([*range(5), *range(5)])
        assert sorted(forget[:5]) == list(range(5))


def test_7_floor_rules_of_modules():
    def count(n, p):
        return len(top_modules({f"m{i:02}.weight": torch.full((2,), float(i)) for i in range(n)}, p))

    assert [count(20, 0.33), count(10, 0.3), count(7, 0.5), count(10, 0.01), count(3, 1.0)] == [6, 3, 3, 1, 3]


def test_7_modules_are_ranked_by_mean_then_name():
    scores = {
        "a.weight": torch.tensor([1.0, 3.0]),
        "c.weight": torch.tensor([5.0, -1.0, 2.0]),
        "b.weight": torch.tensor([2.0]),
    }
    assert top_modules(scores, 1.0) == ("a.weight", "b.weight", "c.weight")
    assert top_modules({"small.weight": torch.full((2,), 2.0), "large.weight": torch.full((9,), 1.0)}, 0.5) == (
        "small.weight",
    )


def test_8_per_module_nothing_changes_outside_the_selection(model, data, make_run):
    edit = FadeSparseModule(FadeSparseModuleConfig(sparsity_inclusiveness=0.25)).unlearn(model, data, make_run())
    assert len(edit.parts) == 2
    assert edit.facts["candidate_modules"] == 8
    assert {f"{name}.weight" for name in edit.facts["selected_modules"]} == set(edit.parts)
    before = model.network.state_dict()
    kept = {name: tensor.clone() for name, tensor in before.items()}
    with apply_edit(model.network, edit):
        assert all(delta.any() for delta in deltas(edit).values())
        x = torch.randn(2, 3, 8)
        for name, module in model.network.named_modules():
            if f"{name}.weight" in TARGETS - set(edit.parts):
                assert torch.equal(
                    module(x), torch.nn.functional.linear(x, kept[f"{name}.weight"], kept.get(f"{name}.bias"))
                )


def test_8_the_selected_modules_are_those_with_the_highest_mean(model, data, make_run):
    run = make_run()
    scores = run.attribute(model, data, candidates=run.candidates(model))
    best = sorted(scores, key=lambda name: -scores[name].mean().item())[:4]
    edit = FadeSparseModule(FadeSparseModuleConfig()).unlearn(model, data, make_run())
    assert set(edit.parts) == set(best)


def test_per_module_targets_restrict_the_candidates(model, data, make_run):
    from vu_core.adapters import Lora

    run = make_run(parameters=Lora(LoraConfig(targets=("to_q", "to_k"))))
    edit = FadeSparseModule(FadeSparseModuleConfig(sparsity_inclusiveness=1.0)).unlearn(model, data, run)
    assert set(edit.parts) == {name for name in TARGETS if "to_q" in name or "to_k" in name}


def test_norms_and_biases_are_no_modules_to_choose(model, data, make_run):
    model.network["unet"].norm = torch.nn.LayerNorm(8).requires_grad_(False)
    run = make_run(parameters=Full(FullConfig()))
    edit = FadeSparseModule(FadeSparseModuleConfig(sparsity_inclusiveness=1.0)).unlearn(model, data, run)
    maps = {"conv_in", "time", "conv_out", *(name.removeprefix("unet.").removesuffix(".weight") for name in TARGETS)}
    assert set(edit.facts["selected_modules"]) == {f"unet.{name}" for name in maps}
    assert set(edit.parts) == {f"unet.{name}.weight" for name in maps}


TABLE = {
    "epochs": 1,
    "steps": None,
    "batch_size": 2,
    "accumulation": 1,
    "lr": 1e-4,
    "schedule": "cosine",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
}


@pytest.mark.parametrize(
    ("method", "parameters", "targets"),
    [
        (Fade, "lora", ("to_q", "to_k", "to_v", "to_out.0")),
        (FadeSparseModule, "lora", ("to_q", "to_k", "to_v", "to_out.0")),
        (FadeSparseWeight, "masked-lora", ("to_k", "to_q", "to_v")),
    ],
)
def test_defaults_are_those_of_the_table_of_the_paper(method, parameters, targets):
    """Section 2.3 of the specification, the column of vu."""
    config, axes = method.Config(), method.defaults
    assert {name: getattr(config.training, name) for name in TABLE} == TABLE
    assert axes["weighting"] == {"name": "simple", "forget_weight": 0.3, "retain_weight": 1.0}
    lora = LoraConfig(**{key: value for key, value in axes["parameters"].items() if key != "name"})
    assert axes["parameters"]["name"] == parameters
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (4, 4.0, 0.0, targets)
    assert (config.noise_offset, config.timestep_low, config.timestep_high) == (0.0, 0, None)
    assert (config.teacher_bank, config.split_backward, config.retain_sampling) == (0, False, "cycle")
    if method is not Fade:
        assert config.sparsity_inclusiveness == 0.5
        assert axes["attribution"] == {"name": "saliency"}
    if method is FadeSparseWeight:
        assert (config.mask_scope, config.ties) == ("targets", "exact")


def test_the_example_of_the_readme_draws_later_timesteps(data, make_run):
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], code)
    method, model, seen = code["LateFade"](FadeConfig(timestep_low=10)), ToyDenoiser(), []
    add_noise = model.add_noise
    model.add_noise = lambda z, n, t: seen.extend(t.tolist()) or add_noise(z, n, t)
    method.unlearn(model, data, make_run(training=Training(steps=60, batch_size=4)))
    assert len(seen) == 480
    assert min(seen) >= 10
    assert max(seen) < 100
    assert 66 < sum(seen) / len(seen) < 74  # 70 if late ones are more likely, 54.5 if all are equally likely


@pytest.mark.parametrize(
    "wrong",
    [
        lambda n, low, high, generator: torch.full((n,), high),
        lambda n, low, high, generator: torch.full((n,), float(low)),
        lambda n, low, high, generator: torch.full((n + 1,), low),
    ],
)
def test_a_sampler_that_draws_no_timesteps_is_refused(wrong, model, data, make_run):
    run = make_run()
    with pytest.raises(ValueError, match="timestep_sampler"):
        distil(model, data, run, run.parameterise(model), FadeConfig(), timestep_sampler=wrong)


def test_the_share_changes_the_edit_of_both_sparse_methods(model, data, make_run):
    for method, config, axes in (
        (FadeSparseModule, FadeSparseModuleConfig, {}),
        (FadeSparseWeight, FadeSparseWeightConfig, {"parameters": masked()}),
    ):
        edits = [method(config(sparsity_inclusiveness=p)).unlearn(model, data, make_run(**axes)) for p in (0.3, 0.6)]
        assert not equal(*edits)


@pytest.mark.parametrize("config", [FadeSparseModuleConfig, FadeSparseWeightConfig])
@pytest.mark.parametrize("p", [0.0, -0.1, 1.1])
def test_a_share_of_nothing_is_refused(config, p):
    with pytest.raises(ValueError, match="must be"):
        config(sparsity_inclusiveness=p)


def support(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: delta != 0 for name, delta in deltas(edit).items()}


class TestPerWeight:
    def unlearn(self, model, data, make_run, **settings):
        return FadeSparseWeight(FadeSparseWeightConfig(**settings)).unlearn(model, data, make_run(parameters=masked()))

    def expected(self, model, data, make_run, p):
        """Masks by plain sorting over (score descending, name, index)."""
        run = make_run()
        scores = run.attribute(model, data, candidates=run.candidates(model))
        places = [(-float(s), name, i) for name in sorted(scores) for i, s in enumerate(scores[name].flatten())]
        k = int(p * len(places) + 1e-9)
        masks = {name: torch.zeros(s.numel(), dtype=torch.bool) for name, s in scores.items()}
        for _, name, i in sorted(places)[:k]:
            masks[name][i] = True
        return k, {name: mask.reshape(scores[name].shape) for name, mask in masks.items()}

    @pytest.mark.parametrize("p", [0.1, 0.33, 0.5])
    def test_8_the_mask_has_exactly_k_ones_and_holds_the_support(self, p, model, data, make_run):
        edit = self.unlearn(model, data, make_run, sparsity_inclusiveness=p)
        k, masks = self.expected(model, data, make_run, p)
        assert edit.facts["mask_ones"] == k
        assert edit.facts["mask_weights"] == sum(m.numel() for m in masks.values())
        for name, part in edit:
            assert isinstance(part, LowRank)
            assert torch.equal(part.mask, masks[name])
            assert part.delta().any()
            assert not part.delta()[~part.mask].any()

    def test_8_the_support_stays_in_the_mask_in_forward_merge_and_after_reload(self, model, data, make_run, tmp_path):
        edit = self.unlearn(model, data, make_run, sparsity_inclusiveness=0.3)
        save_edit(edit, tmp_path / "edit.safetensors")
        again = load_edit(tmp_path / "edit.safetensors")
        base = {name: dict(model.network.named_parameters())[name].detach().clone() for name in edit.parts}
        expected = None
        for one in (edit, again):
            with apply_edit(model.network, one):
                for name, part in edit:
                    module = model.network.get_submodule(name.removesuffix(".weight"))
                    eye = torch.eye(8)
                    effect = (module(eye) - module(torch.zeros(1, 8))).T - base[name]  # what the forward pass adds to W
                    assert effect.abs()[~part.mask].max() < 1e-6
                    assert effect.abs()[part.mask].max() > 1e-5
                outcome = answers(model)
            expected = outcome if expected is None else expected
            assert torch.equal(outcome, expected)
        assert equal(edit, again)

    def test_a_full_share_trains_like_plain_lora(self, model, data, make_run):
        dense = Fade(FadeConfig()).unlearn(model, data, make_run())
        edit = self.unlearn(model, data, make_run, sparsity_inclusiveness=1.0)
        for name, delta in deltas(edit).items():
            torch.testing.assert_close(delta, deltas(dense)[name], rtol=1e-4, atol=1e-6)

    def test_per_module_scope_gives_every_target_the_same_density(self, model, data, make_run):
        edit = self.unlearn(model, data, make_run, sparsity_inclusiveness=0.25, mask_scope="per_module")
        assert all(int(part.mask.sum()) == 16 for _, part in edit)
        assert set(edit.facts["mask_density"].values()) == {0.25}

    def test_global_scope_ranks_the_whole_denoiser(self, model, data, make_run):
        edit = self.unlearn(model, data, make_run, sparsity_inclusiveness=0.25, mask_scope="global")
        run = make_run()
        scores = run.attribute(model, data, candidates=None)
        every = torch.cat([score.flatten() for score in scores.values()])
        cutoff = every.sort(descending=True).values[int(0.25 * len(every)) - 1]
        assert edit.facts["ranked_weights"] == len(every)
        for name, part in edit:
            assert torch.equal(part.mask, scores[name] >= cutoff)
        assert edit.facts["mask_ones"] != int(0.25 * edit.facts["mask_weights"])

    def test_global_scope_ranks_the_denoiser_and_targets_outside_of_it(self, model, data, make_run):
        masks = MaskedLora(LoraConfig(rank=2, alpha=4.0, targets=("to_q", "text_encoder")))
        run = make_run(parameters=masks, attribution=Magnitude(MagnitudeConfig()))
        config = FadeSparseWeightConfig(sparsity_inclusiveness=0.6, mask_scope="global")
        edit = FadeSparseWeight(config).unlearn(model, data, run)
        names = [name for name, _ in model.network.named_parameters() if name.startswith("unet.")]
        weights = [model.network.get_parameter(name) for name in (*names, "text_encoder.weight")]
        every = torch.cat([weight.abs().flatten() for weight in weights])
        cutoff = every.sort(descending=True).values[int(0.6 * len(every)) - 1]
        assert edit.facts["ranked_weights"] == len(every)
        assert set(edit.parts) == {"unet.attn1.to_q.weight", "unet.attn2.to_q.weight", "text_encoder.weight"}
        for name, part in edit:
            assert torch.equal(part.mask, model.network.get_parameter(name).abs() >= cutoff)

    def test_inclusive_ties_keep_all_that_equal_the_last(self, model, data, make_run):
        class Flat:
            def attribute(self, model, data, run, *, candidates=None):
                return {name: torch.tensor([0.1, 0.5, 0.5, 0.2] * 16).reshape(8, 8) for name in candidates}

        ones = {}
        for ties in ("exact", "inclusive"):
            config = FadeSparseWeightConfig(sparsity_inclusiveness=0.3, ties=ties)
            run = make_run(parameters=masked(), attribution=Flat())
            ones[ties] = FadeSparseWeight(config).unlearn(model, data, run).facts["mask_ones"]
        assert ones == {"exact": int(0.3 * 512 + 1e-9), "inclusive": 256}

    def test_parameters_that_cannot_honour_masks_are_an_error(self, model, data, make_run):
        from vu_core import PlanError

        with pytest.raises(PlanError):
            FadeSparseWeight(FadeSparseWeightConfig()).unlearn(model, data, make_run())


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (4, 1.0)])
def test_10_saved_and_loaded_the_edit_answers_the_same_for_any_alpha(rank, alpha, model, data, make_run, tmp_path):
    edit = FadeSparseWeight(FadeSparseWeightConfig()).unlearn(model, data, make_run(parameters=masked(rank, alpha)))
    save_edit(edit, tmp_path / "edit.safetensors")
    with apply_edit(model.network, edit):
        trained = answers(model)
    with apply_edit(model.network, load_edit(tmp_path / "edit.safetensors")):
        assert torch.equal(answers(model), trained)
    half = Edit({name: attrs.evolve(part, alpha=part.alpha / 2) for name, part in edit})
    with apply_edit(model.network, half):
        assert not torch.allclose(answers(model), trained, atol=1e-4)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (4, 1.0)])
@pytest.mark.parametrize("method", [Fade, FadeSparseWeight])
def test_10_the_reloaded_edit_answers_as_the_model_that_was_trained(
    method, rank, alpha, model, data, make_run, tmp_path, monkeypatch
):
    attached = []
    take = LoraTheta.edit
    monkeypatch.setattr(LoraTheta, "edit", lambda theta: attached.append(answers(model)) or take(theta))
    untouched = answers(model)
    edit = method(method.Config()).unlearn(model, data, make_run(parameters=masked(rank, alpha)))
    save_edit(edit, tmp_path / "edit.safetensors")
    assert len(attached) == 1
    assert (attached[0] - untouched).abs().max() > 1e-3
    with apply_edit(model.network, load_edit(tmp_path / "edit.safetensors")):
        # Training computes W x + B A x, the edit (W + B A) x: equal up to rounding.
        torch.testing.assert_close(answers(model), attached[0], rtol=1e-5, atol=2e-6)


def test_15_a_step_of_accumulated_batches_has_the_gradient_of_one_large_batch(first_gradient):
    data = toy_data(forget=6, retain=6)
    one, _ = first_gradient(data, Training(steps=1, batch_size=4))
    two, _ = first_gradient(data, Training(steps=1, batch_size=2, accumulation=2))
    four, _ = first_gradient(data, Training(steps=1, batch_size=1, accumulation=4))
    assert one.norm() > 1e-2
    for other in (two, four):
        assert (other - one).abs().max() < 1e-6
        assert (other - one).norm() < 1e-6 * one.norm()


def test_15_accumulated_batches_equal_one_large_batch(model, make_run):
    data = toy_data(forget=6, retain=6)
    one = Fade(FadeConfig()).unlearn(model, data, make_run(training=Training(steps=4, batch_size=2, lr=1e-3)))
    two = Fade(FadeConfig()).unlearn(
        model, data, make_run(training=Training(steps=4, batch_size=1, accumulation=2, lr=1e-3))
    )
    for name, delta in deltas(one).items():
        torch.testing.assert_close(delta, deltas(two)[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bank", [0, 6])
def test_16_an_interrupted_and_resumed_run_gives_bitwise_the_same_edit(bank, data, make_run, tmp_path, monkeypatch):
    training = Training(steps=9, lr=1e-2, batch_size=2, checkpoint_every=0.0)
    method = Fade(FadeConfig(teacher_bank=bank))
    whole = method.unlearn(ToyDenoiser(), data, make_run(training=training))
    interrupted = make_run(training=training)

    def stop(event):
        if event.type == "progress" and "loss_forget" in event.values and event.values["step"] == 5:
            raise KeyboardInterrupt

    interrupted.emit_event = stop
    with pytest.raises(KeyboardInterrupt):
        method.unlearn(ToyDenoiser(), data, interrupted)
    steps = []
    resumed = make_run(training=training, folder=interrupted.folder, resuming=True)
    resumed.emit_event = lambda event: steps.append(event.values.get("step")) if "loss_forget" in event.values else None
    assert equal(method.unlearn(ToyDenoiser(), data, resumed), whole)
    assert min(steps) >= 5


class Opposing:
    """A weighting that is not linear: it asks for both gradients, also for the zero one of the first step."""

    linear = False

    def __init__(self):
        self.grams = []

    def coefficients(self, gram, losses, state):
        self.grams.append(gram.clone())
        norms = gram.diagonal().sqrt()
        return tuple(1.0 / n if n > 0 else 0.0 for n in norms)


@pytest.mark.parametrize("settings", [{}, {"split_backward": True}])
@pytest.mark.parametrize("bank", [6, 7])
def test_18_the_first_retain_gradient_is_zero_with_a_bank_too(bank, settings, model, data, make_run):
    opposing = Opposing()
    training = Training(steps=3, lr=1e-2, batch_size=2)
    edit = Fade(FadeConfig(teacher_bank=bank, **settings)).unlearn(
        model, data, make_run(training=training, weighting=opposing)
    )
    assert opposing.grams[0][0, 0] == 0.0
    assert opposing.grams[0][1, 1] > 0.0
    assert all(torch.isfinite(delta).all() for delta in deltas(edit).values())


@pytest.mark.parametrize("bank", [0, 6])
def test_a_hard_mask_is_that_of_the_data_also_with_a_bank(bank, model, data, make_run, tmp_path):
    config = SaliencyConfig()
    cached = CachedAttribution(Saliency(config), "saliency", config, "", Cache(tmp_path / "fresh"))
    mask = HardMask(HardMaskConfig(density=0.3))
    run = make_run(parameters=Full(FullConfig()), attribution=cached, regularizers=(mask,))
    edit = Fade(FadeConfig(teacher_bank=bank)).unlearn(model, data, run)
    names = run.candidates(model)
    masks = top_masks(Saliency(config).attribute(model, data, run, candidates=names), 0.3)
    changed = support_of_whole_weights(edit, model)
    assert changed
    assert sum(int(moved.sum()) for moved in changed.values()) > 0.5 * sum(int(m.sum()) for m in masks.values())
    assert not any((moved & ~masks[name]).any() for name, moved in changed.items())


def support_of_whole_weights(edit, model):
    before = {name: model.network.get_parameter(name).detach().clone() for name in edit.parts}
    with apply_edit(model.network, edit):
        return {name: model.network.get_parameter(name).detach() != weight for name, weight in before.items()}


def test_18_other_weightings_run_and_the_first_step_is_finite(model, data, make_run, make_axis):
    opposing = Opposing()
    edits = {
        "simple": Fade(FadeConfig()).unlearn(model, data, make_run()),
        "none": Fade(FadeConfig()).unlearn(model, data, make_run(weighting=make_axis("weighting", "none"))),
        "gram": Fade(FadeConfig()).unlearn(model, data, make_run(weighting=opposing)),
    }
    assert opposing.grams[0][0, 0] == 0.0  # the retain gradient of an untouched adapter
    assert opposing.grams[0][1, 1] > 0.0
    assert opposing.grams[1][0, 0] > 0.0
    for edit in edits.values():
        assert all(torch.isfinite(delta).all() for delta in deltas(edit).values())
    assert not equal(edits["simple"], edits["none"])
    assert not equal(edits["simple"], edits["gram"])


@pytest.mark.parametrize("method", [FadeSparseModule, FadeSparseWeight])
def test_a_wrong_range_of_timesteps_is_found_before_the_attribution(method, model, data, make_run):
    class NeverAsked:
        def attribute(self, *arguments, **options):
            pytest.fail("the attribution ran first")

    with pytest.raises(ConfigError):
        method(method.Config(timestep_high=101)).unlearn(model, data, make_run(attribution=NeverAsked()))


def test_the_three_variants_give_different_edits_on_one_seed(model, data, make_run):
    edits = [
        Fade(FadeConfig()).unlearn(model, data, make_run()),
        FadeSparseModule(FadeSparseModuleConfig()).unlearn(model, data, make_run()),
        FadeSparseWeight(FadeSparseWeightConfig()).unlearn(model, data, make_run(parameters=masked())),
    ]
    assert not equal(edits[0], edits[1])
    assert not equal(edits[0], edits[2])
    assert not equal(edits[1], edits[2])


def test_a_huge_gradient_is_clipped(model, data, make_run):
    """Fault 1 of the reference: there the clipping never acts."""
    norms, edits = [], []
    for limit in (0.0, 1e-3):
        run = make_run(training=Training(steps=3, lr=1e-3, max_grad_norm=limit, schedule="constant"))
        run.emit_event = lambda event: (
            norms.append(event.values.get("grad_norm")) if "grad_norm" in event.values else None
        )
        edits.append(Fade(FadeConfig()).unlearn(model, data, run))
    assert max(norm for norm in norms if norm is not None) > 1e-3
    assert not equal(*edits)


@pytest.mark.parametrize("method", [FadeSparseModule, FadeSparseWeight])
def test_scores_that_are_not_finite_end_the_run_before_anything_is_chosen(method, model, data, make_run):
    class Broken:
        name = "broken"

        def attribute(self, model, data, run, *, candidates=None):
            scores = {name: torch.rand(8, 8) for name in candidates}
            scores["unet.attn1.to_k.weight"][0, 0] = float("nan")
            return scores

    with pytest.raises(UnlearnError, match=r"'broken'.*unet\.attn1\.to_k\.weight") as caught:
        method(method.Config()).unlearn(model, data, make_run(parameters=masked(), attribution=Broken()))
    assert caught.value.code == "VU-U036"
