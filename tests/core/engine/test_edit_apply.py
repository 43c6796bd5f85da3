import pytest
import torch
from engine_toys import ToyModel, toy_data, toy_losses, toy_model, toy_run
from torch import nn

from vu_core import Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import (
    Full,
    FullConfig,
    Lora,
    LoraConfig,
    MaskedLora,
    apply_edit,
    compose,
    load_edit,
    save_edit,
)
from vu_core.training import fit

Q = "unet.attn.to_q.weight"
TARGETS = ("to_q", "to_out.0", "conv")


def trained(parameters, folder, *, model=None, masks=False, **settings):
    model = model or toy_model()
    run = toy_run(folder, **settings)
    chosen = None
    if masks:
        g = torch.Generator().manual_seed(1)
        names = parameters.candidates(model)
        chosen = {n: torch.rand(model.network.get_parameter(n).shape, generator=g) < 0.5 for n in names}
    theta = parameters.attach(model, run, masks=chosen)
    fit(theta, toy_losses(model), toy_data(), run)
    return model, theta


@pytest.mark.parametrize(
    ("parameters", "masks"),
    [
        (Lora(LoraConfig(rank=2, alpha=8.0, targets=TARGETS)), False),
        (MaskedLora(LoraConfig(rank=4, alpha=1.0, targets=TARGETS)), True),
        (Full(FullConfig()), False),
        (Full(FullConfig()), True),
    ],
)
def test_a_saved_edit_computes_what_was_trained_and_leaves_no_trace(parameters, masks, tmp_path):
    model, theta = trained(parameters, tmp_path, masks=masks)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = model.network["unet"](x).detach()
    save_edit(theta.edit(), tmp_path / "edit.safetensors")
    theta.detach()
    untouched = model.network["unet"](x)
    tensors = {name: (tensor, tensor.clone()) for name, tensor in model.network.state_dict(keep_vars=True).items()}
    modules = dict(model.network.named_modules())
    with apply_edit(model.network, load_edit(tmp_path / "edit.safetensors")) as network:
        assert network is model.network
        torch.testing.assert_close(network["unet"](x), wanted, rtol=1e-5, atol=1e-5)
        assert not any(tensor.requires_grad for tensor in network.parameters())
    assert (wanted - untouched).abs().max() > 1e-2
    assert torch.equal(model.network["unet"](x), untouched)
    after = model.network.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, copy) for name, (tensor, copy) in tensors.items())
    assert dict(model.network.named_modules()) == modules


def test_full_edits_apply_bit_for_bit(tmp_path):
    model, theta = trained(Full(FullConfig()), tmp_path)
    state = {name: tensor.clone() for name, tensor in theta.state().items()}
    edit = theta.edit()
    theta.detach()
    with apply_edit(model.network, edit):
        assert all(torch.equal(model.network.get_parameter(name), tensor) for name, tensor in state.items())


def test_errors_inside_bring_the_model_back(tmp_path):
    model = toy_model()
    before = model.network.get_parameter(Q)
    with pytest.raises(KeyboardInterrupt), apply_edit(model.network, Edit({Q: Replace(torch.zeros(6, 4))})):
        raise KeyboardInterrupt
    assert model.network.get_parameter(Q) is before


def test_buffers_can_be_replaced():
    network = nn.ModuleDict({"unet": nn.BatchNorm1d(2)})
    buffer = network["unet"].running_mean
    with apply_edit(network, Edit({"unet.running_mean": Replace(torch.ones(2))})):
        assert network["unet"].running_mean.tolist() == [1.0, 1.0]
        assert "unet.running_mean" in dict(network.named_buffers())
    assert network["unet"].running_mean is buffer


def test_parents_lie_below_and_are_summed_in_float64():
    base = torch.full((2, 2), 1.0)
    tiny = Sparse(torch.arange(4), torch.full((4,), 4e-8), (2, 2))
    assert torch.equal(compose(base, [tiny]), base)
    assert not torch.equal(compose(base, [tiny, tiny]), base)
    network = nn.ModuleDict({"unet": nn.Linear(2, 2)})
    network["unet"].weight = nn.Parameter(base.clone())
    first, second = Edit({"unet.weight": tiny}), Edit({"unet.weight": tiny})
    with apply_edit(network, first, second):
        assert not torch.equal(network["unet"].weight, base)
    replaced = Edit({"unet.weight": Replace(torch.zeros(2, 2))})
    with apply_edit(network, first, replaced):
        assert torch.equal(network["unet"].weight, torch.zeros(2, 2))
    with apply_edit(network, replaced, Edit({"unet.weight": LowRank(torch.ones(1, 2), torch.ones(2, 1), 3.0)})):
        assert torch.equal(network["unet"].weight, torch.full((2, 2), 3.0))


def test_an_edit_on_an_edited_model_composes(tmp_path):
    lora = Lora(LoraConfig(rank=2, targets=TARGETS))
    model, theta = trained(lora, tmp_path / "first")
    first = theta.edit()
    theta.detach()
    x = torch.randn(3, 2, 4, 4)
    with apply_edit(model.network, first):
        _, theta = trained(lora, tmp_path / "second", model=model, seed=4)
        wanted = model.network["unet"](x).detach()
        second = theta.edit()
        theta.detach()
    with apply_edit(model.network, first, second):
        torch.testing.assert_close(model.network["unet"](x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masks", [False, True])
def test_half_precision_edits_compute_what_was_trained(masks, tmp_path):
    model = toy_model(dtype=torch.bfloat16)
    parameters = MaskedLora(LoraConfig(rank=2, targets=TARGETS))
    _, theta = trained(parameters, tmp_path / "first", model=model, masks=masks, precision="bf16")
    x = torch.randn(3, 2, 4, 4).to(torch.bfloat16)
    wanted = model.network["unet"](x).detach()
    first = theta.edit()
    theta.detach()
    modules = dict(model.network.named_modules())
    with apply_edit(model.network, first):
        assert torch.equal(model.network["unet"](x), wanted)
        _, theta = trained(parameters, tmp_path / "second", model=model, masks=masks, precision="bf16")
        wanted = model.network["unet"](x).detach()
        second = theta.edit()
        theta.detach()
    with apply_edit(model.network, first, second):
        assert torch.equal(model.network["unet"](x), wanted)
    assert dict(model.network.named_modules()) == modules


def test_an_edit_can_be_looked_at_while_parameters_are_attached(tmp_path):
    model, theta = trained(Lora(LoraConfig(targets=TARGETS)), tmp_path)
    x = torch.randn(3, 2, 4, 4)
    trained_output, zero = model.network["unet"](x), Edit({Q: Replace(torch.zeros(6, 4))})
    with apply_edit(model.network, zero), theta.base():
        assert not bool(model.network.get_parameter(Q).any())
        inside = model.network["unet"](x)
    theta.detach()
    with apply_edit(model.network, zero):
        assert torch.equal(model.network["unet"](x), inside)
    assert not torch.equal(trained_output, inside)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"unet.attn.to_p.weight": Replace(torch.ones(6, 4))}, Q),
        ({"unet.gone": Replace(torch.ones(1))}, "no such tensor"),
        ({"unet": Replace(torch.ones(1))}, "no such tensor"),
        ({Q: Replace(torch.ones(4, 6))}, "(4, 6)"),
        ({Q: Sparse(torch.tensor([0]), torch.ones(1), (24,))}, "(24,)"),
        ({Q: LowRank(torch.ones(1, 5), torch.ones(6, 1), 1.0)}, "(6, 5)"),
    ],
)
def test_an_edit_for_another_model_is_refused_before_anything_changes(parts, words):
    model = toy_model()
    before = dict(model.network.named_parameters())
    with (
        pytest.raises(EditError) as error,
        apply_edit(model.network, Edit({**parts, "unet.conv.bias": Replace(torch.ones(4))})),
    ):
        pass
    assert error.value.code == "VU-E054"
    assert words in str(error.value)
    assert all(model.network.get_parameter(name) is tensor for name, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_used_twice_changes_in_both_places(dtype):
    shared = nn.Linear(3, 3).to(dtype).requires_grad_(False)
    network = nn.ModuleDict({"unet": nn.ModuleDict({"to_a": shared, "to_b": shared})})
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    untouched = shared(x)
    with apply_edit(network, Edit({"unet.to_a.weight": LowRank(torch.ones(1, 3), torch.ones(3, 1), 1.0)})):
        assert torch.equal(network["unet"]["to_a"](x), network["unet"]["to_b"](x))
        assert not torch.equal(network["unet"]["to_b"](x), untouched)
    assert network["unet"]["to_a"] is network["unet"]["to_b"] is shared


@pytest.mark.parametrize("kind", ["edit", "full"])
def test_tied_tensors_stay_tied(kind, tmp_path):
    network = nn.ModuleDict({"unet": nn.ModuleDict({"embed": nn.Linear(3, 3), "head": nn.Linear(3, 3)})})
    tied = network["unet"]["head"].weight = network["unet"]["embed"].weight
    if kind == "edit":
        with apply_edit(network, Edit({"unet.embed.weight": Replace(torch.zeros(3, 3))})):
            assert not bool(network["unet"]["head"].weight.any())
    else:
        theta = Full(FullConfig()).attach(ToyModel(network), toy_run(tmp_path))
        assert network["unet"]["head"].weight is network["unet"]["embed"].weight is not tied
        theta.detach()
    assert network["unet"]["head"].weight is network["unet"]["embed"].weight is tied
