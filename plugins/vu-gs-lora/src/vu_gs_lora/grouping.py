"""Which trained tensors belong together: by block, by module or each its own."""

from __future__ import annotations

from collections.abc import Sequence

from vu_core import Blocks, Model, TransformerBlock

KINDS = ("block", "pair", "matrix")
"""A group per block of a transformer, per module (the two factors of a LoRA), or per trained tensor."""


def blocks_of(model: Model) -> tuple[TransformerBlock, ...]:
    """Return the blocks of a model from the input to the output; none where it has none."""
    return tuple(model.blocks()) if isinstance(model, Blocks) else ()


def block_of(module: str, blocks: Sequence[TransformerBlock]) -> str:
    """Return the name of the block that a module lies in, or its own name outside of all blocks.

    Example:
        >>> blocks = [TransformerBlock("vit.1", ("vit.1.fc1.weight", "vit.1.fc2.weight"))]
        >>> block_of("vit.1.fc2", blocks), block_of("vit.10.fc2", blocks)
        ('vit.1', 'vit.10.fc2')
    """
    return next((block.name for block in blocks if f"{module}.".startswith(f"{block.name}.")), module)


def group_of(kind: str, module: str, tensor: str, blocks: Sequence[TransformerBlock]) -> str:
    """Return the name of the group of a trained tensor.

    Args:
        kind: one of `KINDS`.
        module: that the tensor changes.
        tensor: its name.
        blocks: of the model.
    """
    if kind == "matrix":
        return tensor
    return module if kind == "pair" else block_of(module, blocks)
