import pytest
import torch
from engine_toys import ToyModel, toy_data, toy_losses, toy_model, toy_run
from torch import nn

from vu_core import LowRank, PlanError, RecordError, Replace, Sparse, UnlearnError
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig, LoraLayer, MaskedLora, difference
from vu_core.training import fit

KINDS = {
    "lora": Lora(LoraConfig(rank=2, targets=("to_q", "to_out.0", "conv"))),
    "masked-lora": MaskedLora(LoraConfig(rank=2, targets=("to_q", "to_out.0", "conv"))),
    "full": Full(FullConfig()),
}
Q = "unet.attn.to_q.weight"


def masks_of(model, kind):
    generator = torch.Generator().manual_seed(5)
    names = KINDS[kind].candidates(model)
    return {n: torch.rand(model.network.get_parameter(n).shape, generator=generator) < 0.4 for n in names}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_training_leaves_the_base_bit_identical_and_detach_puts_the_very_objects_back(kind, tmp_path):
    model = toy_model()
    modules = dict(model.network.named_modules())
    tensors = dict(model.network.named_parameters())
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    fit(theta, toy_losses(model), toy_data(), toy_run(tmp_path))
    assert any(bool(delta.detach().any()) for _, delta in theta.named_deltas())
    theta.detach()
    theta.detach()
    assert all(model.network.get_submodule(name) is module for name, module in modules.items())
    assert all(model.network.get_parameter(name) is tensor for name, tensor in tensors.items())
    assert all(torch.equal(tensors[name], copies[name]) for name in tensors)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_base_computes_as_untouched_nests_and_survives_errors(kind, tmp_path):
    model = toy_model()
    x = torch.randn(2, 2, 4, 4)
    untouched = model.network["unet"](x)
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.1)
    wanted = [tensor.requires_grad for tensor in theta.parameters()]

    def fail_inside():
        with theta.base():
            with theta.base():
                pass
            assert torch.equal(model.network["unet"](x), untouched)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not torch.equal(model.network["unet"](x), untouched)
    assert [tensor.requires_grad for tensor in theta.parameters()] == wanted == [True] * len(wanted)


def test_untouched_parameters_change_no_bit(kind, tmp_path):
    model = toy_model()
    x = torch.randn(2, 2, 4, 4)
    untouched = model.network["unet"](x)
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    assert torch.equal(model.network["unet"](x), untouched)
    assert all(not bool(delta.detach().any()) for _, delta in theta.named_deltas())


def test_named_things_agree(kind, tmp_path):
    model = toy_model()
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    named = dict(theta.named_parameters())
    assert all(a is b for a, b in zip(named.values(), theta.parameters(), strict=True))
    assert list(theta.state()) == list(named)
    deltas = dict(theta.named_deltas())
    assert all(deltas[n].shape == model.network.get_parameter(n).shape for n in KINDS[kind].candidates(model))
    grouped = [id(tensor) for group in theta.groups().values() for tensor in group]
    assert sorted(grouped) == sorted(map(id, named.values()))
    sum(delta.sum() for delta in deltas.values()).backward()
    assert any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in theta.parameters())


def test_state_goes_back_and_foreign_state_is_refused(kind, tmp_path):
    model = toy_model()
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    saved = {name: tensor.clone() + 1 for name, tensor in theta.state().items()}
    theta.load_state(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in theta.state().items())
    first = next(iter(saved))
    for wrong in ({}, {**saved, "other": torch.ones(1)}, {**saved, first: torch.ones(1, 1, 1, 1, 1)}):
        with pytest.raises(RecordError) as error:
            theta.load_state(wrong)
        assert error.value.code == "VU-R030"


def test_targets_limit_what_is_trained(kind, tmp_path):
    model = toy_model()
    theta = KINDS[kind].attach(model, toy_run(tmp_path), targets=[Q])
    assert [name for name, _ in theta.named_deltas()] == [Q]


@pytest.mark.parametrize("kind", ["masked-lora", "full"])
def test_masks_limit_the_change_in_training_and_in_the_edit(kind, tmp_path):
    model = toy_model()
    masks = masks_of(model, kind)
    theta = KINDS[kind].attach(model, toy_run(tmp_path), masks=masks)
    fit(theta, toy_losses(model), toy_data(), toy_run(tmp_path))
    for name, delta in theta.named_deltas():
        assert not bool(delta.detach()[~masks[name]].any())
        assert bool(delta.detach().any())
    base = {name: model.network.get_parameter(name) for name in masks}
    with theta.base():
        base = {name: model.network.get_parameter(name).detach().clone() for name in masks}
    for name, part in theta.edit():
        if isinstance(part, Replace):
            assert torch.equal(part.tensor[~masks[name]], base[name][~masks[name]])
        else:
            assert not bool(part.delta(tuple(base[name].shape))[~masks[name]].any())


def test_a_mask_of_ones_is_plain_lora_bitwise(tmp_path):
    edits = []
    for parameters, ones in ((KINDS["lora"], None), (KINDS["masked-lora"], True)):
        model = toy_model()
        masks = None if ones is None else {n: torch.ones_like(m) for n, m in masks_of(model, "masked-lora").items()}
        folder = tmp_path / str(ones)
        theta = parameters.attach(model, toy_run(folder), masks=masks)
        fit(theta, toy_losses(model), toy_data(), toy_run(folder))
        edits.append(theta.edit())
    for (_, plain), (_, masked) in zip(*edits, strict=True):
        assert masked.mask is None
        assert torch.equal(plain.A, masked.A)
        assert torch.equal(plain.B, masked.B)


@pytest.mark.parametrize("kind", ["masked-lora", "full"])
def test_weights_with_empty_masks_are_not_trained(kind, tmp_path):
    model = toy_model()
    masks = {name: torch.zeros_like(mask) for name, mask in masks_of(model, kind).items()}
    with pytest.raises(UnlearnError) as error:
        KINDS[kind].attach(model, toy_run(tmp_path), masks=masks)
    assert error.value.code == "VU-U030"
    masks[Q][0, 0] = True
    theta = KINDS[kind].attach(model, toy_run(tmp_path), masks=masks)
    assert [name for name, _ in theta.named_deltas()] == [Q]


def test_plain_lora_refuses_masks(tmp_path):
    model = toy_model()
    with pytest.raises(PlanError) as error:
        KINDS["lora"].attach(model, toy_run(tmp_path), masks=masks_of(model, "lora"))
    assert error.value.code == "VU-L032"
    assert "masked-lora" in str(error.value)


@pytest.mark.parametrize("kind", ["masked-lora", "full"])
@pytest.mark.parametrize("mask", [torch.ones(2, 2, dtype=torch.bool), torch.ones(6, 4)])
def test_masks_of_another_shape_or_type_are_refused(kind, mask, tmp_path):
    with pytest.raises(PlanError) as error:
        KINDS[kind].attach(toy_model(), toy_run(tmp_path), masks={Q: mask})
    assert error.value.code == "VU-L031"


@pytest.mark.parametrize("given", [{"targets": ["unet.attn.to_p.weight"]}, {"masks": {"unet.attn.to_p.weight": None}}])
def test_names_that_are_no_candidates_are_refused_with_near_misses(given, tmp_path):
    with pytest.raises(PlanError) as error:
        KINDS["masked-lora"].attach(toy_model(), toy_run(tmp_path), **given)
    assert error.value.code == "VU-L031"
    assert Q in str(error.value)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("to_q",), ["unet.attn.to_q.weight"]),
        (("attn",), ["unet.attn.to_q.weight", "unet.attn.to_out.0.weight"]),
        (("attn.to_q",), ["unet.attn.to_q.weight"]),
        (("unet.conv",), ["unet.conv.weight"]),
        (("text_encoder.0",), ["text_encoder.0.weight"]),
        (("text_encoder",), ["text_encoder.0.weight"]),
        ((), ["unet.conv.weight", "unet.attn.to_q.weight", "unet.attn.to_out.0.weight"]),
    ],
)
def test_targets_are_ends_of_names_within_the_denoiser(targets, names):
    assert list(Lora(LoraConfig(targets=targets)).candidates(toy_model())) == names


def test_without_a_denoiser_the_whole_network_is_meant():
    model = ToyModel(toy_model().network, denoiser=None)
    assert "text_encoder.0.weight" in Lora(LoraConfig(targets=())).candidates(model)


@pytest.mark.parametrize("targets", [("to_qq",), ("to_q", "to_qq"), ("o_q",), ("norm",)])
def test_a_target_that_matches_nothing_is_an_error_with_near_misses(targets):
    with pytest.raises(PlanError) as error:
        Lora(LoraConfig(targets=targets)).candidates(toy_model())
    assert error.value.code == "VU-L030"
    assert targets == ("norm",) or "'to_q'" in str(error.value)


def test_full_trains_a_tied_tensor_once(tmp_path):
    network = nn.ModuleDict({"unet": nn.ModuleDict({"embed": nn.Linear(3, 3), "head": nn.Linear(3, 3)})})
    network["unet"]["head"].weight = network["unet"]["embed"].weight
    model = ToyModel(network)
    assert list(Full(FullConfig()).candidates(model)) == [name for name, _ in network.named_parameters()]
    theta = Full(FullConfig()).attach(model, toy_run(tmp_path))
    network["unet"]["head"](network["unet"]["embed"](torch.ones(1, 3))).sum().backward()
    assert all(bool(tensor.grad.any()) for tensor in theta.parameters())


def test_full_trains_norms_and_biases_below_a_target(tmp_path):
    names = Full(FullConfig(targets=("norm", "attn.to_q"))).candidates(toy_model())
    assert set(names) == {"unet.norm.weight", "unet.norm.bias", "unet.attn.to_q.weight", "unet.attn.to_q.bias"}


def test_lora_starts_gaussian_with_deviation_one_over_rank_per_module(tmp_path):
    network = nn.ModuleDict({"unet": nn.ModuleList([nn.Linear(4000, 3), nn.Linear(4000, 3)])})
    model = ToyModel(network)
    theta = Lora(LoraConfig(rank=8, targets=())).attach(model, toy_run(tmp_path))
    a = [layer.factors.A.detach() for layer in theta.layers.values()]
    assert a[0].std().item() == pytest.approx(1 / 8, rel=0.02)
    assert not torch.equal(a[0], a[1])
    assert all(not bool(layer.factors.B.detach().any()) for layer in theta.layers.values())


def test_a_module_used_twice_is_replaced_in_both_places(tmp_path):
    shared = nn.Linear(3, 3)
    network = nn.ModuleDict({"unet": nn.ModuleDict({"to_a": shared, "to_b": shared})})
    theta = Lora(LoraConfig(targets=("to_a",))).attach(ToyModel(network), toy_run(tmp_path))
    assert isinstance(network["unet"]["to_b"], LoraLayer)
    theta.detach()
    assert network["unet"]["to_b"] is shared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_train_in_float32(kind, dtype, tmp_path):
    model = toy_model(dtype=dtype)
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    assert {tensor.dtype for tensor in theta.parameters()} == {torch.float32}
    fit(theta, toy_losses(model), toy_data(), toy_run(tmp_path, precision=precision))
    assert any(bool(delta.detach().any()) for _, delta in theta.named_deltas())
    assert all(p.tensor.dtype == dtype for _, p in theta.edit() if isinstance(p, Replace))


def test_difference_is_exact_and_small_where_little_changed():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, 50, generator=generator)
    assert difference(base, base.clone()) is None
    new = base.clone()
    new.view(-1)[::9] = torch.randn(223, generator=generator) * 1e6
    part = difference(base, new)
    assert isinstance(part, Sparse)
    assert part.indices.tolist() == list(range(0, 2000, 9))
    rebuilt = base.flatten().double().index_add(0, part.indices, part.values.double()).float().reshape(40, 50)
    assert torch.equal(rebuilt, new)
    assert isinstance(difference(base, base + 1), Replace)


def test_edits_are_copies(kind, tmp_path):
    model = toy_model()
    theta = KINDS[kind].attach(model, toy_run(tmp_path))
    with torch.no_grad():
        for tensor in theta.parameters():
            tensor.add_(0.1)
    part = theta.edit().parts[Q]
    tensor = part.A if isinstance(part, LowRank) else part.tensor
    before = tensor.clone()
    with torch.no_grad():
        for parameter in theta.parameters():
            parameter.zero_()
    assert torch.equal(tensor, before)
    assert not tensor.requires_grad


def tied_model():
    network = nn.ModuleDict({"unet": nn.ModuleDict({"to_a": nn.Linear(3, 3), "to_b": nn.Linear(3, 3)})})
    network["unet"]["to_b"].weight = network["unet"]["to_a"].weight
    return ToyModel(network)


@pytest.mark.parametrize("plugin", [Lora, MaskedLora])
@pytest.mark.parametrize("target", ["to_a", "to_b"])
def test_a_tied_weight_cannot_carry_a_low_rank_change(plugin, target, tmp_path):
    model = tied_model()
    modules = list(model.network.modules())
    with pytest.raises(PlanError, match=rf"unet\.{target}\.weight") as error:
        plugin(LoraConfig(targets=(target,))).attach(model, toy_run(tmp_path))
    assert error.value.code == "VU-L034"
    assert list(model.network.modules()) == modules


def test_a_tied_weight_that_is_not_chosen_is_no_obstacle(tmp_path):
    model = tied_model()
    model.network["unet"]["to_c"] = nn.Linear(3, 3)
    theta = Lora(LoraConfig(targets=())).attach(model, toy_run(tmp_path), targets=["unet.to_c.weight"])
    assert list(theta.layers) == ["unet.to_c.weight"]
    # A layer around another one shares its weight with what it wraps, which is no second place of the model.
    Lora(LoraConfig(targets=("to_c",))).attach(model, toy_run(tmp_path)).detach()


def notes_of_full(dtype, step, folder):
    events = []
    model = ToyModel(nn.ModuleDict({"unet": nn.Linear(2, 2, bias=False)}).to(dtype))
    with torch.no_grad():
        model.network["unet"].weight.fill_(1.0)
    theta = Full(FullConfig()).attach(model, toy_run(folder, emit_event=events.append))
    with torch.no_grad():
        theta.parameters()[0].add_(torch.tensor([[step, 0.0], [0.5, 0.0]]))
    edit = theta.edit()
    theta.detach()
    return edit, [event.values["text"] for event in events if event.type == "note"]


def test_full_tells_what_the_precision_of_the_base_has_swallowed(tmp_path):
    edit, notes = notes_of_full(torch.bfloat16, 1e-4, tmp_path)
    assert (edit.parts["unet.weight"].tensor != 1.0).sum() == 1
    assert len(notes) == 1
    assert "bfloat16" in notes[0]
    assert "1 of 2 changes" in notes[0]


def test_full_tells_nothing_of_rounding_in_float32(tmp_path):
    edit, notes = notes_of_full(torch.float32, 1e-4, tmp_path)
    assert (edit.parts["unet.weight"].tensor != 1.0).sum() == 2
    assert notes == []
