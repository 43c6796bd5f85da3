"""Model, Edit -> the same model, changed while entered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vu_core.contracts import Model
from vu_core.edit import Edit
from vu_core.errors import EditError


@contextmanager
def apply(model: Model, edit: Edit) -> Iterator[Model]:
    """Look at ``model`` with ``edit`` applied; afterwards it is bit-identical to before.

    Args:
        model: the model the edit was made for.
        edit: a value, never changed; its ``base`` names the weights that it was made for.

    Yields:
        The same model object; its tensors are swapped, nothing is added or subtracted.

    Raises:
        EditError: the edit was made for other weights, or does not say for which (``VU-E053``).
    """
    from vu_core.adapters import apply_edit

    check_base(model, edit)
    with apply_edit(model.network, edit):
        yield model


def check_base(model: Model, edit: Edit) -> None:
    """Object to an edit that was made for other weights, or does not say for which. Raises: EditError (``VU-E053``)."""
    if edit.base != model.facts.base_hash:
        made_for = f"weights with the hash {edit.base[:12]}" if edit.base else "weights that it does not name"
        raise EditError(
            "VU-E053",
            f"The edit was made for {made_for}; these have the hash {model.facts.base_hash[:12]}.",
            "Name the model that the run used; its plugin and reference are in run.toml.",
            where=f"model {model.facts.name!r}",
        )
