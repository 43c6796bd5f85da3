"""The classes behind the names; torch-free, since the first three stages must not need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from vu_core import (
    Capability,
    Concept,
    DataError,
    Manifest,
    ModelError,
    ModelFacts,
    Selection,
    Source,
    did_you_mean,
    digest,
    setting,
    together,
)
from vu_core.training import Training

SOURCE = Source("A toy, 2020", "https://example.org", "own")
STYLES = ("neon", "flat", "dots")


@attrs.frozen
class Empty:
    pass


@attrs.frozen
class ModelConfig:
    width: int = setting(4, help="how wide", ge=1, le=64)
    variant: str | None = setting(None, help="which files")


class ToyModel:
    Config = ModelConfig
    source = SOURCE
    can = frozenset({Capability.DENOISE, Capability.GENERATE})

    def __init__(self, ref, config):
        self.ref, self.config = ref, config

    @classmethod
    def recognises(cls, path):
        return (path / "toy.json").exists()

    def inspect(self):
        if self.ref.endswith("half"):
            raise ModelError("VU-M070", "Half a model.", "Fetch the rest.", where=self.ref)
        downloads = 2_000_000_000 if "/" in self.ref and not self.ref.startswith("/") else 0
        return ModelFacts(
            "toy-model",
            self.ref,
            digest("base", str(self.config.width)),
            self.can,
            parameters=1000,
            bytes=4000,
            resolution=64,
            forward_gflops=0.5,
            downloads=downloads,
            generation={"steps": 10, "guidance": 1.0},
        )


class OtherModel(ToyModel):
    takes_hub_ids = True

    @classmethod
    def recognises(cls, path):
        return (path / "both.json").exists() or (path / "toy.json").read_text() == "both"


class MuteModel(ToyModel):
    can = frozenset()

    @classmethod
    def recognises(cls, path):
        return False


class FailingModel(MuteModel):
    def inspect(self):
        raise KeyError("no such tensor")


@attrs.frozen
class DataConfig:
    crop: Literal["center", "random"] = setting("center", help="which part")
    limits: tuple[int, ...] = setting((1, 2), help="some numbers", ge=0)
    shares: Mapping[str, float] = setting(help="a table of numbers", factory=dict)
    base: str | None = setting(None, help="a folder", path=True)


class ToyData:
    Config = DataConfig
    source = SOURCE
    metrics = ("verdict", "size")

    def __init__(self, ref, config):
        self.ref, self.config = ref, config

    @classmethod
    def recognises(cls, path):
        return path.suffix == ".csv"

    def parse(self, forget, overwrite):
        wrong = [self._unknown(text, "data.forget") for text in forget if not self._known(text)]
        wrong += [self._unknown(text, "data.overwrite") for text in overwrite if not self._known(text)]
        if wrong:
            raise together(wrong)
        concepts = tuple(Concept(text, {"style": text.partition(":")[2]}) for text in forget or ("style:neon",))
        return Selection(concepts, () if overwrite else ("style:flat takes its place.",))

    @staticmethod
    def _known(text):
        axis, _, value = text.partition(":")
        return axis == "style" and value in STYLES

    @staticmethod
    def _unknown(text, where):
        near = did_you_mean(text.partition(":")[2], STYLES)
        return DataError("VU-D070", f"There is no concept {text!r}.{near}", f"Known: {', '.join(STYLES)}.", where=where)

    def manifest(self, selection):
        counts = {"train/forget": 10, "train/retain": 90, "evaluation/items": 3}
        return Manifest("toy-data", self.ref, digest(repr(selection.concepts)), counts, "by index", {"style": STYLES})


class PlainData(ToyData):
    Config = Empty
    metrics = ("size",)

    @classmethod
    def recognises(cls, path):
        return False


@attrs.frozen
class MethodConfig:
    training: Training = setting(Training(epochs=2), help="how it is trained")
    strength: float = setting(0.5, help="how strong", gt=0, le=1)
    modules: tuple[str, ...] = setting(("to_q",), help="which modules")
    careful: bool = setting(False, help="take more time", speed_only=True)
    low: int = setting(0, help="lower end", ge=0)
    high: int = setting(10, help="upper end", ge=0)

    def __attrs_post_init__(self):
        if self.low >= self.high:
            raise ValueError(f"low must be less than high, but they are {self.low} and {self.high}")


class ToyMethod:
    """Forget toys.

    It does not exist.
    """

    Config = MethodConfig
    source = SOURCE
    descends = ("retain", "forget")
    defaults = {
        "weighting": {"name": "tilted", "forget": 0.3},
        "parameters": {"name": "large", "rank": 6},
        "attribution": {"name": "guess"},
    }

    def __init__(self, config):
        self.config = config


class Ascending(ToyMethod):
    descends = ("retain",)


class Silent(ToyMethod):
    descends = None


class ClosedForm(ToyMethod):
    Config = Empty
    defaults = {}


@attrs.frozen
class DemandingConfig:
    target: str = setting(help="must be said")


class Demanding(ToyMethod):
    Config = DemandingConfig
    defaults = {}


@attrs.frozen
class EndlessConfig:
    training: Training = setting(Training(), help="how it is trained")


class Endless(ToyMethod):
    Config = EndlessConfig
    defaults = {}


@attrs.frozen
class WrapperConfig:
    training: Training = setting(Training(epochs=2), help="how it is trained")
    base_method: str = setting("toy-method", help="what it wraps")
    base: Mapping[str, Any] = setting(factory=dict, help="settings of it", settings_of="base_method")


class Wrapper(ToyMethod):
    Config = WrapperConfig
    defaults = {"regularizer": {"drag": {"force": 3.0}}, "attribution": {"name": "guess"}}


class Greedy:
    @attrs.frozen
    class Config:
        parameters: int = 1


class NoConfig:
    pass


class OddConfig:
    @attrs.frozen
    class Config:
        field: NoSuchType = None  # noqa: F821


@attrs.frozen
class SmallConfig:
    rank: int = setting(2, help="rank", ge=1)


class Small:
    Config = SmallConfig
    source = SOURCE


@attrs.frozen
class LargeConfig:
    rank: int = setting(4, help="rank", ge=1)
    alpha: float = setting(4.0, help="alpha", gt=0)


class Large:
    Config = LargeConfig
    source = SOURCE


class Even:
    Config = Empty
    source = SOURCE
    linear = True

    def __init__(self, config):
        self.config = config

    def coefficients(self, gram, losses, state):
        return 1.0, 1.0


@attrs.frozen
class TiltedConfig:
    forget: float = setting(1.0, help="factor on forget", ge=0)
    retain: float = setting(1.0, help="factor on retain", ge=0)


class Tilted(Even):
    Config = TiltedConfig

    def coefficients(self, gram, losses, state):
        return self.config.retain, self.config.forget


class Guess:
    Config = Empty
    source = SOURCE


@attrs.frozen
class PullConfig:
    force: float = setting(1.0, help="how hard", ge=0)


class Pull:
    Config = PullConfig
    source = SOURCE


class Push(Pull):
    pass


class Drag(Pull):
    pass


@attrs.frozen
class VerdictConfig:
    threshold: float = setting(0.5, help="from here on it is true", ge=0, le=1)


class Verdict:
    Config = VerdictConfig
    source = SOURCE


class Size:
    Config = Empty
    source = SOURCE
