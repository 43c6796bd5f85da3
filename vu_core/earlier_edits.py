"""``model.edits``: the edits that a model carries before a run begins, read from the heads of their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs

from vu_core.errors import ConfigError, PlanError
from vu_core.run_folder import EDIT
from vu_core.safetensors_header import read_header


@attrs.frozen
class EarlierEdit:
    """An edit that lies under the one of a run.

    Args:
        path: its file, absolute; the name of a run does not depend on it.
        digest: hash of its content, see `vu_core.adapters.edit_digest`.
        base: hash of the weights that it was made for.
        parents: hashes of the edits that it was made on, in order.
        replaces: it holds whole new tensors, which mean what they should on its parents only.
    """

    path: str
    digest: str
    base: str = ""
    parents: tuple[str, ...] = ()
    replaces: bool = False


def read_earlier(text: str) -> EarlierEdit:
    """Return what the head of an edit tells; no tensor is read.

    Args:
        text: an ``edit.safetensors``, or the folder of the run that made it.

    Raises:
        ConfigError: there is no edit (``VU-C155``).
    """
    named = Path(text).expanduser()
    path = named / EDIT if named.is_dir() else named
    try:
        header = json.loads(read_header(path)["__metadata__"]["vu"])
        return EarlierEdit(
            str(path.absolute()),
            str(header["sha256"]),
            str(header["base"]),
            tuple(header["parents"]),
            any(part["kind"] == "replace" for part in header["parts"].values()),
        )
    except OSError as error:
        raise _no_edit(text, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_edit(text, "it is no edit") from error


def _no_edit(text: str, why: str) -> ConfigError:
    return ConfigError(
        "VU-C155",
        f"The earlier edit {text!r} cannot be read: {why}.",
        "Name the edit.safetensors or the folder of a finished run; if it was moved: --set 'model.edits=[\"...\"]'.",
        where="model.edits",
    )


def check_chain(edits: Sequence[EarlierEdit], base_hash: str) -> None:
    """Object to edits that cannot lie on these weights in this order.

    Changes that are added may lie on each other in any order, and each may be left out; a whole new tensor fits only on
    the edits that it was made on.

    Args:
        edits: from the oldest to the newest.
        base_hash: of the weights as on disk.

    Raises:
        PlanError: one was made for other weights (``VU-L125``), or is there without what it was made on (``VU-L126``).
    """
    for place, edit in enumerate(edits):
        if edit.base != base_hash:
            raise PlanError(
                "VU-L125",
                f"The earlier edit {edit.path!r} was made for weights with the hash {edit.base[:12] or '(not named)'}; "
                f"these have the hash {base_hash[:12]}.",
                "Name edits of the model that the run names.",
                where="model.edits",
            )
        if edit.replaces and edit.parents != tuple(each.digest for each in edits[:place]):
            raise PlanError(
                "VU-L126",
                f"The earlier edit {edit.path!r} holds whole new tensors, made on {len(edit.parents)} other edits that "
                "are not those before it.",
                "Name all edits that it was made on in front of it, in their order; edits that were trained with "
                "--parameters lora may also be left out.",
                where="model.edits",
            )
