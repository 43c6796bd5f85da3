"""Everything that the heavy stages work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from vu_core.contracts import Dataset, Metric, Model, Unlearner
from vu_core.data import ForgetRetain
from vu_core.plan import Plan
from vu_core.registry import Entry
from vu_core.run import Run


@attrs.frozen(eq=False)
class Bench:
    """A loaded plan.

    Args:
        plan: what was decided; model: the untouched model; dataset: the data plugin, which can build the held-out part.
        unlearner: the method; metrics: by name, in the order in which they are asked.
        run: what the method is handed besides model and data.
        data: train and validation examples that have passed through ``model.prepare``; ``None`` when a finished run is
            only measured.
        entries: who takes part, base methods of the method included: one of them is to blame when code of theirs fails.
    """

    plan: Plan
    model: Model
    dataset: Dataset[Any]
    unlearner: Unlearner[Any]
    metrics: Mapping[str, Metric[Any]]
    run: Run
    data: ForgetRetain | None = None
    entries: Sequence[Entry] = ()
