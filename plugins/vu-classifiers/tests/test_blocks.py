"""Transformer blocks are found by names and shapes, in the layouts of several libraries, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from vu_classifiers.blocks import find_blocks
from vu_classifiers.torch_module import capabilities
from vu_core import Capability, StoredTensor

Shapes = Mapping[str, tuple[int, ...]]

D, M = 4, 16
LAYOUTS: Mapping[str, tuple[str, str, str, Shapes]] = {
    "canvas": (
        "blocks.{}",
        "ffn.0.weight",
        "ffn.2.weight",
        {"attention.qkv.weight": (3 * D, D), "attention.out.weight": (D, D), "norm1.weight": (D,)},
    ),
    "transformers 4": (
        "vit.encoder.layer.{}",
        "intermediate.dense.weight",
        "output.dense.weight",
        {
            **{f"attention.attention.{name}.weight": (D, D) for name in ("query", "key", "value")},
            "attention.output.dense.weight": (D, D),
        },
    ),
    "transformers 5": (
        "vit.layers.{}",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
        {f"attention.{name}_proj.weight": (D, D) for name in "qkvo"},
    ),
    "torchvision": (
        "encoder.layers.encoder_layer_{}",
        "mlp.0.weight",
        "mlp.3.weight",
        {"self_attention.in_proj_weight": (3 * D, D), "self_attention.out_proj.weight": (D, D)},
    ),
    "timm": (
        "blocks.{}",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
        {"attn.qkv.weight": (3 * D, D), "attn.proj.weight": (D, D)},
    ),
    "face transformer as published": (
        "transformer.layers.{}",
        "1.fn.fn.net.0.weight",
        "1.fn.fn.net.3.weight",
        {"0.fn.fn.to_qkv.weight": (3 * D, D), "0.fn.fn.to_out.0.weight": (D, D), "0.fn.norm.weight": (D,)},
    ),
}
AROUND: Shapes = {"patches.weight": (D, 3, 2, 2), "position": (1, 5, D), "head.weight": (3, D), "head.bias": (3,)}


def network(layout: str, depth: int = 12) -> dict[str, tuple[int, ...]]:
    part, first, second, attention = LAYOUTS[layout]
    shapes = dict(AROUND)
    for place in range(depth):
        block = {first: (M, D), second: (D, M), first.replace("weight", "bias"): (M,), **attention}
        shapes |= {f"{part.format(place)}.{name}": shape for name, shape in block.items()}
    return shapes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [1, 12])
def test_blocks_of_a_layout(layout: str, depth: int) -> None:
    part, first, second, attention = LAYOUTS[layout]
    found = find_blocks(network(layout, depth).items())
    assert [block.name for block in found] == [part.format(place) for place in range(depth)]
    last = found[-1]
    assert last.ffn == (f"{last.name}.{first}", f"{last.name}.{second}")
    assert set(last.attention) == {f"{last.name}.{name}" for name, shape in attention.items() if len(shape) == 2}


def test_the_order_of_the_tensors_does_not_matter() -> None:
    shapes = network("timm")
    assert find_blocks(reversed(list(shapes.items()))) == find_blocks(sorted(shapes.items()))


def test_a_hidden_width_as_large_as_queries_keys_and_values() -> None:
    """With m = 3 d the fused (3 d, d) is no part of the feed-forward network."""
    part, first, second, _ = LAYOUTS["canvas"]
    shapes = {**network("canvas", 1), f"{part.format(0)}.{first}": (3 * D, D), f"{part.format(0)}.{second}": (D, 3 * D)}
    (block,) = find_blocks(shapes.items())
    assert block.ffn == ("blocks.0.ffn.0.weight", "blocks.0.ffn.2.weight")


def test_blocks_inside_of_stages() -> None:
    """A stage of one block is not taken for the block, although it holds one pair, too."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, depth in enumerate((1, 2)):
        for place in range(depth):
            inner = f"layers.{stage}.blocks.{place}"
            shapes |= {f"{inner}.fc1.weight": (M, D), f"{inner}.fc2.weight": (D, M), f"{inner}.qkv.weight": (3 * D, D)}
        shapes[f"layers.{stage}.downsample.weight"] = (2 * D, 4 * D)
    names = [block.name for block in find_blocks(shapes.items())]
    assert names == ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"]


@pytest.mark.parametrize(
    "shapes",
    [
        {"layers.0.fc1.weight": (M, D), "layers.0.fc2.weight": (D, M)},
        {"layers.0.fc1.weight": (M, D), "layers.0.fc2.weight": (D, M), "layers.0.other.weight": (7, 9)},
        {"layers.0.down.weight": (D, M), "layers.0.up.weight": (M, D), "layers.0.qkv.weight": (12, D)},
        {"layers.0.a.weight": (M, D), "layers.0.b.weight": (D, D), "layers.0.c.weight": (D, M)},
        {"layers.0.fc1.table": (M, D), "layers.0.fc2.table": (D, M), "layers.0.qkv.weight": (12, D)},
        {"net.fc1.weight": (M, D), "net.fc2.weight": (D, M), "net.qkv.weight": (12, D)},
        {"layers.0.c1.weight": (M, D, 1, 1), "layers.0.c2.weight": (D, M, 1, 1), "layers.0.q.weight": (D, D)},
        {
            f"layers.0.{token}.{name}.weight": shape
            for token in ("channels", "patches")
            for name, shape in (("fc1", (M, D)), ("fc2", (D, M)))
        },
    ],
    ids=["no attention", "another width", "narrows", "apart", "no weights", "not numbered", "convolutions", "mixer"],
)
def test_what_is_no_block(shapes: Shapes) -> None:
    assert find_blocks(shapes.items()) == ()


def test_a_network_of_torch() -> None:
    with torch.random.fork_rng():
        module = nn.TransformerEncoderLayer(8, 2, 24)
    shapes = {f"layers.0.{name}": tuple(p.shape) for name, p in module.named_parameters()}
    (block,) = find_blocks(shapes.items())
    assert block.ffn == ("layers.0.linear1.weight", "layers.0.linear2.weight")
    assert block.attention == ("layers.0.self_attn.in_proj_weight", "layers.0.self_attn.out_proj.weight")


def test_the_capability_follows_from_the_stored_tensors() -> None:
    with_blocks = [StoredTensor(name, "F32", shape) for name, shape in network("timm", 2).items()]
    without = [StoredTensor(name, "F32", shape) for name, shape in AROUND.items()]
    assert capabilities(with_blocks) == {Capability.CLASSIFY, Capability.FRESH, Capability.BLOCKS}
    assert capabilities(without) == {Capability.CLASSIFY, Capability.FRESH}
