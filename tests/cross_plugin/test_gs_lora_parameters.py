"""How many parameters GS-LoRA tunes in the published models, on networks without numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vu_classifiers.architecture import Architecture
from vu_classifiers.blocks import find_blocks
from vu_classifiers.face_network import FaceTransformer
from vu_core.adapters import Lora, LoraConfig
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
