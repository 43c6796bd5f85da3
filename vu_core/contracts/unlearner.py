"""What a method is: its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vu_core.contracts.model import Model
from vu_core.data import ForgetRetain
from vu_core.edit import Edit
from vu_core.source import Source

if TYPE_CHECKING:
    from vu_core.run import Run

ConfigT = TypeVar("ConfigT", covariant=True)


class Unlearner(Protocol[ConfigT]):
    """The class behind a method name.

    `Config` is a frozen attrs class made of `vu_core.setting` fields; its defaults are the paper's. A gradient method
    has a field ``training: Training`` (`vu_core.training.Training`). ``defaults`` holds the tables of the other axes
    that the method wants when nothing is said, such as ``{"weighting": {"name": "simple", "forget_weight": 0.3}}``
    with the keys ``weighting``, ``parameters``, ``attribution`` and ``regularizer`` (a table per name:
    ``{"regularizer": {"hard-mask": {"density": 0.5}}}``). A method that looks at no example says ``uses_examples =
    False``; the tables it is handed are empty then, and no image is read for it. One that looks at captions and labels
    alone says ``uses_images = False``; its tables have not been through ``model.prepare``.

    A weighting joins two descents, so a loss that is meant to rise would be taught. A method that honours ``weighting``
    therefore says ``descends = ("retain", "forget")``, the losses that it hands over to be minimised; gradient ascent
    hands over the negative of its loss. A method without these words is refused (``VU-C053``).

    A method that wraps another one has a field ``base_method: str`` and beside it ``base: Mapping[str, Any]``, declared
    with ``settings_of="base_method"``; it calls ``run.unlearner(config.base_method, **config.base)``. The base method
    trains with the training and the axes of the method around it.
    """

    Config: ClassVar[type[Any]]
    source: ClassVar[Source]
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(self, config: ConfigT) -> None: ...

    def unlearn(self, model: Model, data: ForgetRetain, run: Run) -> Edit:
        """Return the edit that makes ``model`` forget; the model itself is handed back as it came."""
        ...
