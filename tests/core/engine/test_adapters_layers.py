import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from vu_core.adapters import Factors, LoraLayer, Switch

MODULES = {
    "linear": (lambda: nn.Linear(5, 6), (3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 6, bias=False), (2, 4, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 9, 9)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv2d reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
    "conv2d reflect without bias": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
        (1, 4, 5, 5),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3)),
}


def make(name, *, masked=False, dtype=torch.float64, dropout=0.0, rank=2, zero=False):
    torch.manual_seed(0)
    build, shape = MODULES[name]
    module = build().to(dtype).requires_grad_(False)
    out, inner = module.weight.shape[0], module.weight[0].numel()
    factor_dtype = torch.promote_types(dtype, torch.float32)
    a = torch.randn(rank, inner, dtype=factor_dtype).requires_grad_()
    b = (torch.zeros if zero else torch.randn)(out, rank, dtype=factor_dtype).requires_grad_()
    mask = torch.rand(out, inner) < 0.5 if masked else None
    layer = LoraLayer(module, Factors(a, b, 1.7, dropout, mask), Switch())
    return module, layer, torch.randn(shape, dtype=dtype)


def with_merged_weight(module, layer, x):
    weight = module.weight + layer.factors.delta().reshape(module.weight.shape)
    return torch.func.functional_call(module, {"weight": weight}, (x,))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_output_and_gradients_are_those_of_the_merged_weight(name, masked):
    module, layer, x = make(name, masked=masked)
    factors = (layer.factors.A, layer.factors.B)
    y, expected = layer(x), with_merged_weight(module, layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(y)
    got = torch.autograd.grad((y * cotangent).sum(), factors)
    want = torch.autograd.grad((expected * cotangent).sum(), factors)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_match_finite_differences(masked):
    _, layer, x = make("linear", masked=masked)

    def output(a, b):
        object.__setattr__(layer.factors, "A", a)
        object.__setattr__(layer.factors, "B", b)
        return layer(x)

    assert torch.autograd.gradcheck(output, (layer.factors.A, layer.factors.B))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d groups"])
def test_an_untouched_adapter_changes_no_bit(name, masked, dtype):
    module, layer, x = make(name, masked=masked, dtype=dtype, zero=True)
    assert torch.equal(layer(x), module(x))


def test_switched_off_it_is_the_wrapped_module():
    module, layer, x = make("linear", dtype=torch.float32)
    layer.switch.on = False
    assert torch.equal(layer(x), module(x))
    layer.switch.on = True
    assert not torch.equal(layer(x), module(x))


def test_a_mask_of_zeros_gives_the_base_exactly():
    module, layer, x = make("linear", masked=True, dtype=torch.float32)
    layer.factors.mask.zero_()
    assert torch.equal(layer(x), module(x))


@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_bases_keep_changes_below_their_resolution(masked):
    module, layer, _ = make("linear", masked=masked, dtype=torch.bfloat16)
    x = torch.tensor([[1.0, -1.0, 2.0, -2.0, 0.0]], dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.5)
        module.bias.zero_()
        layer.factors.B.mul_(5e-4)
        assert torch.equal((module.weight.float() + layer.factors.delta()).to(torch.bfloat16), module.weight)
        assert not bool(module(x).any())
        got = layer(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), x.float() @ layer.factors.delta().T, rtol=2**-8, atol=1e-7)
    assert bool(got.any())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(masked, reentrant):
    _, layer, x = make("linear", masked=masked, dtype=torch.float32)
    x.requires_grad_()
    layer(x).square().sum().backward()
    plain = layer.factors.A.grad.clone()
    layer.factors.A.grad = None
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(layer.factors.A.grad, plain)


@pytest.mark.parametrize("masked", [False, True])
def test_dropout_acts_on_the_change_only_and_only_in_training_mode(masked):
    module, layer, x = make("linear", masked=masked, dropout=0.5)
    assert layer.training
    torch.manual_seed(1)
    dropped = layer(x)
    torch.manual_seed(1)
    inner = nn.functional.dropout(x, 0.5)
    expected = module(x) + inner @ layer.factors.delta().T
    torch.testing.assert_close(dropped, expected)
    layer.eval()
    torch.testing.assert_close(layer(x), with_merged_weight(module, layer, x))


def test_names_and_tensors_of_the_state_stay():
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    before = dict(network.named_parameters())
    layer = LoraLayer(network[0], Factors(torch.ones(1, 5), torch.ones(6, 1), 1.0), Switch())
    network.set_submodule("0", layer)
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(network.state_dict()) == ["0.weight", "0.bias"]


def test_layers_can_lie_on_layers():
    module, inner, x = make("linear", masked=True)
    outer = LoraLayer(inner, Factors(torch.randn(1, 5).double(), torch.randn(6, 1).double(), 0.5), Switch())
    expected = with_merged_weight(module, inner, x) + x @ outer.factors.delta().T
    torch.testing.assert_close(outer(x), expected)


def test_only_exact_types_are_supported():
    class Odd(nn.Linear):
        pass

    assert not LoraLayer.supports(Odd(2, 2))
    assert not LoraLayer.supports(nn.LayerNorm(2))


class Copies(TorchDispatchMode):
    """Keeps the dtypes that tensors of a shape are copied to."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.seen = shape, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if function is torch.ops.aten._to_copy.default and arguments[0].shape == self.shape:
            self.seen.append(result.dtype)
        return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d groups"])
def test_under_autocast_the_change_is_computed_in_its_precision(name, masked):
    _, layer, x = make(name, masked=masked, dtype=torch.bfloat16)
    exact = layer(x).float()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Copies(x.shape) as copies:
        y = layer(x)
    assert copies.seen == []  # the input is in that precision already
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("masked", [False, True])
def test_under_autocast_too_a_change_below_the_resolution_of_the_base_is_kept(masked):
    module, layer, _ = make("linear", masked=masked, dtype=torch.bfloat16)
    x = torch.tensor([[1.0, -1.0, 2.0, -2.0, 0.0]], dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.5)
        module.bias.zero_()
        layer.factors.B.mul_(5e-4)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            got = layer(x)
    expected = x.float() @ layer.factors.delta().T
    assert bool(expected.any())
    assert (got.float() - expected).norm() < 0.02 * expected.norm()
