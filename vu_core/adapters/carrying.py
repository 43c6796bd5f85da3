"""A network that carries earlier edits, and the way back to how it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from vu_core.adapters.applying import check_fits, compose, tensor_of
from vu_core.adapters.layers import holders
from vu_core.edit import Edit


class Carried:
    """Merge edits into a network, one after the other, and keep the tensors they have changed.

        W_t = round(W_{t-1} + delta_t)        the sum in float64, rounded to the precision of W

    After each edit the weights are rounded, so that a model which carries the edits 0 .. t is bit for bit the one that
    was measured after task t. In half precision this rounding can lose most of a small change, which a run that applies
    its own edit computes beside the weight: use ``run.precision = "fp32"`` for a sequence of tasks.

    Args:
        network: ``model.network``; its modules stay, changed tensors are replaced by new objects.
        edits: from the oldest to the newest.

    Raises:
        EditError: ``VU-E054`` when a part names no tensor of the network or has another shape; nothing is changed then.

    Example:
        >>> import torch
        >>> from vu_core.edit import Replace
        >>> network = nn.Sequential(nn.Linear(2, 2))
        >>> carried = Carried(network, [Edit({"0.bias": Replace(torch.ones(2))})])
        >>> with carried.pretrained():
        ...     untouched = network[0].bias.clone()
        >>> network[0].bias.tolist(), bool((untouched == 1).any())
        ([1.0, 1.0], False)
    """

    def __init__(self, network: nn.Module, edits: Sequence[Edit]) -> None:
        for edit in edits:
            for name, part in edit:
                check_fits(network, name, part)
        self.network = network
        self._edits = tuple(edits)
        self._changed: dict[int, tuple[Tensor, Tensor]] = {}  # id of the new tensor -> (new, original)
        for edit in edits:
            for name, part in edit:
                before = tensor_of(network, name)
                after = compose(before, [part])
                if isinstance(before, nn.Parameter):
                    after = nn.Parameter(after, requires_grad=before.requires_grad)
                _, original = self._changed.pop(id(before), (before, before))
                self._put({id(before): after})
                self._changed[id(after)] = (after, original)

    def __len__(self) -> int:
        """How many edits the network carries."""
        return len(self._edits)

    @contextmanager
    def earlier(self, count: int) -> Iterator[None]:
        """Let the network compute with its first ``count`` edits alone while entered, as it was after that many tasks.

        Raises:
            RuntimeError: as `pretrained`.

        Example:
            >>> import torch
            >>> from vu_core.edit import Replace
            >>> network = nn.Sequential(nn.Linear(1, 1))
            >>> carried = Carried(network, [Edit({"0.bias": Replace(torch.full((1,), x))}) for x in (1.0, 2.0)])
            >>> with carried.earlier(1):
            ...     network[0].bias.item()
            1.0
        """
        with self.pretrained():
            first = Carried(self.network, self._edits[:count])
            try:
                yield
            finally:
                first._take_out()

    @contextmanager
    def pretrained(self) -> Iterator[None]:
        """Let the network compute without the edits while entered; afterwards it is bit-identical to before.

        Raises:
            RuntimeError: trainable tensors have taken the place of the changed ones: call it inside ``theta.base()``.
        """
        self._take_out()
        try:
            yield
        finally:
            self._put({id(original): new for new, original in self._changed.values()})

    def _take_out(self) -> None:
        self._put({id(new): original for new, original in self._changed.values()})

    def _put(self, instead: dict[int, Tensor]) -> None:
        """Put tensors in the place of others, given by their ``id``, wherever these are held."""
        held = holders(self.network)
        if not instead.keys() <= held.keys():
            raise RuntimeError("run.pretrained() needs the untouched weights: enter it inside theta.base()")
        for old, new in instead.items():
            for module, leaf in held[old]:
                setattr(module, leaf, new)
