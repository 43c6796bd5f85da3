"""Parts of a denoiser by ESD's names."""

from __future__ import annotations

import pytest

from vu_core import PlanError
from vu_core.adapters import SUBSETS, Full, FullConfig, Lora, LoraConfig, check_subset, subset
from vu_core.testing import ToyDenoiser

CROSS = (
    "unet.attn2.to_q.weight",
    "unet.attn2.to_k.weight",
    "unet.attn2.to_v.weight",
    "unet.attn2.to_out.0.weight",
    "unet.attn2.to_out.0.bias",
)
NAMES = Full(FullConfig()).candidates(ToyDenoiser())


def test_each_subset_is_what_its_row_says():
    assert subset(NAMES, "x") == CROSS
    assert subset(NAMES, "x-strict") == CROSS[1:3]
    assert subset(NAMES, "u") == tuple(name for name in NAMES if name not in CROSS)
    assert subset(NAMES, "all") == NAMES
    assert subset(NAMES, "self") == tuple(name.replace("attn2", "attn1") for name in CROSS)


@pytest.mark.parametrize(
    ("name", "older"), [("x", "xattn"), ("u", "noxattn"), ("all", "full"), ("self", "selfattn"), ("x-strict", None)]
)
def test_older_names_and_the_prefix_mean_the_same(name, older):
    expected = subset(NAMES, name)
    assert subset(NAMES, f"esd-{name}") == expected
    if older is not None:
        assert subset(NAMES, older) == subset(NAMES, f"esd-{older}") == expected


def test_names_of_low_rank_parameters_are_cut_the_same_way():
    found = subset(Lora(LoraConfig()).candidates(ToyDenoiser()), "x")
    assert found == tuple(name for name in CROSS if name.endswith("weight"))


def test_norms_of_cross_attention_are_no_linear_maps():
    names = ("unet.b.attn2.norm_q.weight", "unet.b.attn2.to_q.weight", "unet.b.norm2.weight")
    assert subset(names, "x") == ("unet.b.attn2.to_q.weight",)
    assert subset(names, "u") == ("unet.b.norm2.weight",)


def test_words_count_as_wholes():
    assert subset(("unet.attn21.to_k.weight", "unet.attn2.to_k.weight"), "x-strict") == ("unet.attn2.to_k.weight",)
    assert subset(("unet.attn2.to_k_ip.weight", "unet.attn2.to_k.weight"), "x-strict") == ("unet.attn2.to_k.weight",)


def test_nothing_found_is_an_error_that_says_what_was_looked_for():
    with pytest.raises(PlanError) as caught:
        subset(("unet.attn1.to_q.weight",), "x")
    assert caught.value.code == "VU-L092"
    assert "attn2" in caught.value.problem
    assert "unet.attn1.to_q.weight" in caught.value.problem
    with pytest.raises(PlanError) as caught:
        subset((), "all")
    assert caught.value.code == "VU-L092"


def test_unknown_name_is_an_error_with_near_misses():
    with pytest.raises(PlanError) as caught:
        subset(NAMES, "noxatn")
    assert caught.value.code == "VU-L093"
    assert "noxattn" in caught.value.problem


def test_check_says_what_is_wrong():
    assert all(check_subset(name) is None for name in SUBSETS)
    assert "'selfattn'" in str(check_subset("esd-selfatn"))
    assert check_subset("") is not None
    assert check_subset("esd-") is not None
