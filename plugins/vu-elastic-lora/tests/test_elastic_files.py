"""Groups, their files, and cutting edits: truths 12 and 13 (fade.md, sections 8.1 to 8.3 and 11)."""

from __future__ import annotations

import json

import pytest
import torch

from vu_core import ConfigError, Edit, EditError, LowRank, Replace, Sparse
from vu_core.adapters import load_edit, save_edit
from vu_core.testing.toy_denoiser import ToyDenoiser
from vu_elastic_lora.adapter_config import checked_ranks, groups_to_json, ranks_to_json, read_groups, read_ranks
from vu_elastic_lora.elastic import ElasticLora, ElasticLoraConfig
from vu_elastic_lora.extraction import extracted, groups_of, tensor_bytes
from vu_elastic_lora.groups import RankGroup, assigned, grouped, rank_groups, rank_of

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
NAMES = [
    f"{BLOCK}.{attention}.{leaf}.weight"
    for attention in ("attn1", "attn2")
    for leaf in ("to_q", "to_k", "to_v", "to_out.0")
]
GROUPS = rank_groups(NAMES, "layer", (16, 8, 4))


def low_rank(rank, alpha=None, mask=None, seed=0, shape=(5, 6)):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator)
    return LowRank(a, b, float(rank if alpha is None else alpha), mask)


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# Groups


@pytest.mark.parametrize(
    ("space", "maximal", "heuristic", "minimal"),
    [((4,), 4, 4, 4), ((8, 4), 8, 8, 4), ((16, 8, 4), 16, 8, 4), ((16, 8, 4, 2), 16, 8, 2), ((9, 7, 5, 3, 1), 9, 5, 1)],
)
def test_12_versions_pick_first_middle_and_last(space, maximal, heuristic, minimal):
    found = [rank_of(space, version) for version in ("maximal", "heuristic", "minimal")]
    assert found == [maximal, heuristic, minimal]


def test_another_version_is_refused():
    with pytest.raises(ValueError, match="'middle'"):
        rank_of((4, 2), "middle")


def test_a_layer_is_one_attention_and_a_pair_is_one_weight():
    assert grouped(NAMES, "layer") == (tuple(NAMES[:4]), tuple(NAMES[4:]))
    assert grouped(NAMES, "pair") == tuple((name,) for name in NAMES)
    assert [group.names for group in GROUPS] == [tuple(NAMES[:4]), tuple(NAMES[4:])]


def test_order_of_the_names_does_not_matter():
    layers = grouped(reversed(NAMES), "layer")
    assert sorted(map(sorted, layers)) == sorted(map(sorted, grouped(NAMES, "layer")))


@pytest.mark.parametrize("groups", ["layer", "pair"])
def test_an_edit_has_the_groups_of_its_training(make_run, groups):
    theta = ElasticLora(ElasticLoraConfig((8, 4, 2), groups=groups)).attach(ToyDenoiser(), make_run())
    trained = {frozenset(group.names): group.search_space for group in theta.rank_groups}
    assert {frozenset(group.names): group.search_space for group in groups_of(theta.edit())} == trained
    assert len(trained) == (2 if groups == "layer" else 8)


def test_an_edit_without_elasticity_has_the_ranks_it_has():
    parts = {NAMES[0]: low_rank(4), NAMES[1]: low_rank(4), NAMES[2]: low_rank(2), NAMES[4]: low_rank(4)}
    groups = groups_of(Edit(parts))
    assert set(groups) == {
        RankGroup((NAMES[1], NAMES[0]), (4,)),
        RankGroup((NAMES[2],), (2,)),
        RankGroup((NAMES[4],), (4,)),
    }
    for version in ("maximal", "heuristic", "minimal"):
        assert assigned(groups, version) == {name: part.rank for name, part in parts.items()}


def test_an_edit_without_low_rank_parts_is_refused():
    with pytest.raises(EditError) as caught:
        groups_of(Edit({"a.bias": Replace(torch.ones(2))}))
    assert caught.value.code == "VU-E090"


def test_an_edit_whose_ranks_are_not_those_it_names_is_refused():
    facts = {"elastic": {"search_space": [8, 4], "groups": "layer", "scale": "alpha / r_max"}}
    with pytest.raises(EditError, match="rank 4") as caught:
        groups_of(Edit({NAMES[0]: low_rank(8), NAMES[1]: low_rank(4)}, facts=facts))
    assert caught.value.code == "VU-E092"


# Cutting


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("alpha", [8.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_12_13_a_cut_part_is_the_truncated_product(rank, alpha, masked):
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(3)) < 0.4 if masked else None
    whole = low_rank(8, alpha, mask)
    part = extracted(Edit({"w": whole}), {"w": rank}).parts["w"]
    wanted = alpha / 8 * (whole.B[:, :rank] @ whole.A[:rank])
    torch.testing.assert_close(part.delta(), wanted * mask if masked else wanted, rtol=0, atol=1e-6)
    assert (part.rank, part.A.shape, part.B.shape) == (rank, (rank, 6), (5, rank))
    assert part.alpha / part.rank == pytest.approx(alpha / 8, rel=1e-12)
    assert part.mask is mask
    if masked:
        assert not part.delta()[~mask].any()


def test_everything_else_stays_and_the_whole_is_not_touched(tmp_path):
    others = {
        "b": Replace(torch.ones(3)),
        "s": Sparse(torch.tensor([1]), torch.tensor([2.0]), (4,)),
        "left out": low_rank(4),
    }
    elastic = {"search_space": [8, 4], "groups": "pair", "scale": "alpha / r_max"}
    whole = Edit({"w": low_rank(8), **others}, base="b" * 64, method="fade", facts={"elastic": elastic, "kept": 1})
    before = whole.parts["w"].A.clone()
    small = extracted(whole, {"w": 4})
    assert all(small.parts[name] is part for name, part in others.items())
    assert (small.base, small.method, small.parents) == (whole.base, whole.method, whole.parents)
    assert set(small.facts) == {"kept", "extracted_from"}
    small.parts["w"].A.zero_()
    assert torch.equal(whole.parts["w"].A, before)
    save_edit(small, tmp_path / "small.safetensors")
    assert groups_of(load_edit(tmp_path / "small.safetensors")) == (RankGroup(("left out", "w"), (4,)),)


@pytest.mark.parametrize(
    ("ranks", "said"), [({"ww": 4}, "Did you mean 'w'"), ({"w": 0}, "rank 0"), ({"w": 9}, "rank 9"), ({"b": 1}, "'b'")]
)
def test_a_cut_that_cannot_be_made_is_refused(ranks, said):
    with pytest.raises(EditError, match=said) as caught:
        extracted(Edit({"w": low_rank(8), "b": Replace(torch.ones(2))}), ranks)
    assert caught.value.code == "VU-E091"


def test_bytes_are_those_of_the_file_without_its_header(tmp_path):
    mask = torch.ones(5, 6, dtype=torch.bool)
    parts = {
        "w": low_rank(3, mask=mask),
        "b": Replace(torch.ones(3)),
        "s": Sparse(torch.tensor([1]), torch.tensor([2.0]), (4,)),
    }
    save_edit(Edit(parts), tmp_path / "edit.safetensors")
    raw = (tmp_path / "edit.safetensors").read_bytes()
    assert tensor_bytes(Edit(parts)) == len(raw) - 8 - int.from_bytes(raw[:8], "little")


# Files


def test_12_groups_round_trip(tmp_path):
    path = written(tmp_path / "elastic_adapter_config.json", groups_to_json(GROUPS))
    assert read_groups(path, NAMES) == GROUPS
    first = json.loads(path.read_text())[0]
    assert first == {
        "target": [f"{BLOCK}.attn1.{leaf}.lora_A" for leaf in ("to_q", "to_k", "to_v", "to_out.0")],
        "search_space": [16, 8, 4],
    }


def test_ranks_round_trip(tmp_path):
    ranks = {**dict.fromkeys(NAMES[:4], 16), **dict.fromkeys(NAMES[4:], 4)}
    path = written(tmp_path / "ranks.json", ranks_to_json(GROUPS, ranks))
    assert read_ranks(path, GROUPS) == ranks
    assert json.loads(path.read_text())[1]["active_rank_value"] == 4


def entry(number=0, **changes):
    targets = [f"{name.removesuffix('.weight')}.lora_A" for name in GROUPS[number].names]
    return {"target": targets, **changes}


def test_groups_that_are_left_out_take_the_default(tmp_path):
    path = written(tmp_path / "ranks.json", [entry(1, active_rank_value=4)])
    for version, rank in (("maximal", 16), ("heuristic", 8), ("minimal", 4)):
        assert read_ranks(path, GROUPS, version) == {
            **dict.fromkeys(NAMES[:4], rank),
            **dict.fromkeys(NAMES[4:], 4),
        }


TARGET = f"{BLOCK}.attn1.to_q.lora_A"
BAD_RANKS = {
    "a group is missing": ([entry(0, active_rank_value=8)], ["missing", "attn2.to_q.lora_A"]),
    "not trained": (
        [entry(0, active_rank_value=5), entry(1, active_rank_value=4)],
        ["rank 5", "attn1.to_q.lora_A", "16, 8, 4"],
    ),
    "a truth value": (
        [entry(0, active_rank_value=True), entry(1, active_rank_value=4)],
        ["Entry 1", "whole number", "True"],
    ),
    "a number": ([entry(0, active_rank_value=8.0), entry(1, active_rank_value=4)], ["whole number", "8.0"]),
    "a text": ([entry(0, active_rank_value="8"), entry(1, active_rank_value=4)], ["whole number", "'8'"]),
    "no rank": ([entry(0), entry(1, active_rank_value=4)], ["Entry 1", "'active_rank_value' is missing"]),
    "no target": ([{"active_rank_value": 8}], ["'target' is missing"]),
    "no list of targets": ([{"target": TARGET, "active_rank_value": 8}], ["list of texts"]),
    "no targets": ([{"target": [], "active_rank_value": 8}], ["at least one target"]),
    "unknown target": (
        [{"target": [TARGET.replace("to_q", "to_qq")], "active_rank_value": 8}],
        ["to_qq", f"Did you mean '{TARGET}'"],
    ),
    "twice": (
        [entry(0, active_rank_value=8), entry(0, active_rank_value=8), entry(1, active_rank_value=4)],
        ["Entry 2", "entry 1 already"],
    ),
    "twice in one": ([{"target": [TARGET, TARGET], "active_rank_value": 8}], ["this entry already"]),
    "a part of a group": (
        [{"target": [TARGET], "active_rank_value": 8}, entry(1, active_rank_value=4)],
        ["no rank for", "to_out.0.lora_A"],
    ),
    "two ranks in a group": (
        [
            {"target": entry(0)["target"][:2], "active_rank_value": 8},
            {"target": entry(0)["target"][2:], "active_rank_value": 4},
            entry(1, active_rank_value=4),
        ],
        ["8 and 4", "one rank"],
    ),
    "unknown key": (
        [entry(0, active_rank_valu=8), entry(1, active_rank_value=4)],
        ["'active_rank_valu' is unknown", "Did you mean 'active_rank_value'"],
    ),
    "no table": (["maximal"], ["Entry 1", "a table", "'maximal' (text)"]),
}


@pytest.mark.parametrize(("content", "said"), BAD_RANKS.values(), ids=BAD_RANKS)
def test_ranks_that_do_not_fit_are_refused(tmp_path, content, said):
    path = written(tmp_path / "ranks.json", content)
    with pytest.raises(ConfigError) as caught:
        read_ranks(path, GROUPS)
    assert caught.value.code == "VU-C093"
    assert caught.value.where == str(path)
    assert all(words in caught.value.problem for words in said), caught.value.problem


def test_everything_wrong_is_told_at_once(tmp_path):
    path = written(tmp_path / "ranks.json", [entry(0, active_rank_value=True), {"target": ["nowhere"]}, 3])
    with pytest.raises(ConfigError) as caught:
        read_ranks(path, GROUPS)
    assert [f"Entry {number}" in caught.value.problem for number in (1, 2, 3)] == [True] * 3


BAD_GROUPS = {
    "ascending": ([entry(0, search_space=[4, 8])], "descending, but 8 follows 4"),
    "duplicates": ([entry(0, search_space=[8, 8])], "descending, but 8 follows 8"),
    "empty": ([entry(0, search_space=[])], "at least one rank"),
    "zero": ([entry(0, search_space=[4, 0])], "at least 1, but holds 0"),
    "negative": ([entry(0, search_space=[4, -1])], "at least 1, but holds -1"),
    "fraction": ([entry(0, search_space=[4.5])], "whole numbers, but holds 4.5"),
    "truth value": ([entry(0, search_space=[True])], "whole numbers, but holds True"),
    "no list": ([entry(0, search_space=8)], "a list of ranks, but is 8 (a whole number)"),
    "two groups": ([entry(0, search_space=[8]), entry(0, search_space=[4])], "entry 1 already"),
    "unknown target": ([{"target": ["unet.to_q.lora_A"], "search_space": [8]}], "no target 'unet.to_q.lora_A'"),
    "no search space": ([entry(0, active_rank_value=8)], "'search_space' is missing"),
}


@pytest.mark.parametrize(("content", "said"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_groups_that_are_not_valid_are_refused(tmp_path, content, said):
    path = written(tmp_path / "elastic_adapter_config.json", content)
    with pytest.raises(ConfigError) as caught:
        read_groups(path, NAMES)
    assert caught.value.code == "VU-C093"
    assert said in caught.value.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1 column 1"),
        ("[1,", "line 1 column 4"),
        ("{}", "a list of tables, but holds a table"),
        ("3", "a list of tables, but holds a whole number"),
        ('[{"target": [], "target": []}]', "'target' stands twice"),
        ("[" * 100_000, "expected"),
    ],
)
@pytest.mark.parametrize("read", [lambda path: read_ranks(path, GROUPS), lambda path: read_groups(path, NAMES)])
def test_files_that_hold_no_list_of_tables_are_refused(tmp_path, read, content, said):
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path / "ranks.json", content))
    assert caught.value.code == "VU-C092"
    assert said in caught.value.problem


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(ConfigError) as caught:
            read_ranks(path, GROUPS)
        assert caught.value.code == "VU-C092"


def test_ranks_are_given_back_in_the_order_of_the_groups():
    ranks = dict.fromkeys(reversed(NAMES), 8)
    assert list(checked_ranks(GROUPS, ranks)) == NAMES
