"""Names of plugins and the lazy targets behind them."""

from __future__ import annotations

from typing import Literal

import attrs

State = Literal["ready", "broken", "conflict", "blocked", "slow"]


@attrs.frozen
class Entry:
    """One registered name. `load` imports the target; everything else is plain strings.

    Args:
        kind, name, target, summary, aliases, needs, axes, default: as in `vu_core.hookspecs.Register`.
        distribution, version: who brings it.
        state: ``ready``, ``broken``, ``conflict``, ``blocked`` or ``slow``; cause: why it is not ready.
    """

    kind: str
    name: str
    target: str
    summary: str
    distribution: str
    version: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    default: bool = False
    state: State = "ready"
    cause: str = ""
