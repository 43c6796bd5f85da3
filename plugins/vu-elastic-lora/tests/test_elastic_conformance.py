"""The conformance kit of the core on elastic parameters and on the command."""

from __future__ import annotations

from vu_core.testing import CommandTests, ParametersTests
from vu_elastic_lora.elastic import ElasticLora

OTHERS = {"search_space": (4, 1), "alpha": 3.0, "targets": ("to_q", "to_v")}


class TestElasticLora(ParametersTests):
    plugin = ElasticLora
    settings = {"search_space": (4, 2, 1)}
    other_values = OTHERS
    honours_masks = True


class TestElasticLoraBySandwich(ParametersTests):
    plugin = ElasticLora
    settings = {"search_space": (4, 2), "groups": "pair", "sandwich": True}
    other_values = OTHERS
    honours_masks = True


class TestOneRank(ParametersTests):
    plugin = ElasticLora
    settings = {"search_space": (2,)}
    other_values = OTHERS
    honours_masks = True
    tested_elsewhere = ("sandwich",)  # with one rank there is one pass: see test_elastic_training.py


class TestExtract(CommandTests):
    target = "vu_elastic_lora.extract:extract"
