"""How many parameters GS-LoRA and its baselines tune in the published models, on networks without numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vu_baselines.lirf import halves
from vu_baselines.relabelled import trained
from vu_classifiers.architecture import Architecture
from vu_classifiers.blocks import find_blocks
from vu_classifiers.face_network import FaceTransformer
from vu_core.adapters import Full, FullConfig, Lora, LoraConfig
from vu_core.testing import toy_run


def tuned(network: nn.Module, folder) -> tuple[int, int, int]:
    """Return the parameters of a LoRA of rank 8, how many blocks have one, and the parameters of the network."""
    model = SimpleNamespace(network=nn.ModuleDict({"classifier": network}))
    shapes = [(name, tuple(p.shape)) for name, p in model.network.named_parameters()]
    blocks = find_blocks(shapes)
    run = toy_run(folder, parameters=Lora(LoraConfig(rank=8, alpha=1.0, init="kaiming", targets=())))
    theta = run.parameterise(model, targets=[name for block in blocks for name in block.ffn])
    count = sum(p.numel() for p in theta.parameters())
    run.release()
    return count, len(blocks), sum(p.numel() for p in network.parameters())


def test_face_transformer(tmp_path):
    with torch.device("meta"):
        count, blocks, total = tuned(FaceTransformer(Architecture()), tmp_path)
    assert (count, blocks, total) == (245_760, 6, 19_157_504)
    assert count // blocks == 40_960
    assert 100 * count / total == pytest.approx(1.283, abs=5e-4)


def test_vision_transformer_base(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    with torch.device("meta"):
        count, blocks, total = tuned(ViTForImageClassification(ViTConfig(num_labels=100)), tmp_path)
    assert (count, blocks, total) == (737_280, 12, 85_875_556)
    assert 100 * count / total == pytest.approx(0.859, abs=5e-4)


def test_what_the_baselines_train_of_the_face_transformer(tmp_path):
    """All but the head; of LIRF the lower half, the norm behind the last block and the head."""
    with torch.device("meta"):
        network = nn.ModuleDict({"classifier": FaceTransformer(Architecture())})
    shapes = {name: p.shape for name, p in network.named_parameters()}
    blocks = find_blocks([(name, tuple(shape)) for name, shape in shapes.items()])
    facts = SimpleNamespace(name="faces")
    model = SimpleNamespace(network=network, head="classifier.head", blocks=lambda: blocks, facts=facts)
    run = toy_run(tmp_path, parameters=Full(FullConfig()))
    count = {
        "trunk": sum(shapes[name].numel() for name in trained(model, run, train_head=False)),
        "lower half": sum(shapes[name].numel() for name in halves(model, run, train_head=True)[1]),
    }
    assert count == {"trunk": 19_106_304, "lower half": 9_704_960}
    shares = [100 * each / 19_157_504 for each in count.values()]
    assert shares == pytest.approx([99.73, 50.66], abs=5e-3)
