"""Several processes that train together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

_BUCKET = 1 << 20
"""Elements of small tensors that are added up at once over the processes; a larger tensor is added up where it lies."""


@attrs.frozen
class Processes:
    """How many processes train together, and which of them this is.

    Args:
        count: number of processes; index: place of this one, from 0.
    """

    count: int = 1
    index: int = 0

    @property
    def first(self) -> bool:
        """This process reports and writes."""
        return self.index == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if sum(t.numel() for t in (*bucket, tensor)) > _BUCKET:
                _add_up_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        _add_up_bucket(bucket)


def _add_up_bucket(bucket: Sequence[Tensor]) -> None:
    if not bucket:
        return
    flat = [tensor.reshape(-1) for tensor in bucket]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat)
    torch.distributed.all_reduce(joined)
    for tensor, part in zip(bucket, joined.split_with_sizes([t.numel() for t in bucket]), strict=True):
        if part.data_ptr() != tensor.data_ptr():
            tensor.copy_(part.reshape(tensor.shape))


def process_group(device: torch.device) -> Processes:
    """Return the process group that this process was started in; a single process touches no library for it."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not started and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.num_processes, state.process_index)
