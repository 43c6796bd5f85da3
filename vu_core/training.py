"""The one training loop."""

from __future__ import annotations

import attrs

from vu_core.setting import setting


@attrs.frozen
class Training:
    """Settings of `fit`; the table ``[unlearner.training]``. Exactly one of ``steps`` and ``epochs``."""

    steps: int | None = setting(None, help="optimiser steps", ge=1)
    epochs: int | None = setting(None, help="passes over the forget examples", ge=1)
    batch_size: int = setting(2, help="examples per side and optimiser step, before accumulation", ge=1)
    accumulation: int = setting(1, help="micro-batches per optimiser step; k batches of b equal one of k*b", ge=1)
    lr: float = setting(1e-4, help="peak learning rate", gt=0)
    schedule: str = setting("cosine", help="learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = setting(0, help="steps of linear warm-up, fewer than the steps of the run", ge=0)
    weight_decay: float = setting(0.01, help="decoupled weight decay of AdamW", ge=0)
    max_grad_norm: float = setting(1.0, help="gradients are scaled down to this norm; 0 = never", ge=0)
    checkpoint_every: float = setting(60.0, help="seconds between checkpoints", ge=0, speed_only=True)
