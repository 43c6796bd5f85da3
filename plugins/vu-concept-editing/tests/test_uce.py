"""UCE on toys and on a small Stable Diffusion pipeline: which rows, which layers, what is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vu_concept_editing.columns import read_columns
from vu_concept_editing.prompts import TEMPLATES, Prompt, filled, kept_rows, pairs, told_apart, whole
from vu_concept_editing.uce import Uce, UceConfig, text_layers
from vu_core import ConfigError, Examples, ForgetRetain, LowRank, PlanError, Replace
from vu_core.adapters import apply_edit
from vu_core.testing import ToyDenoiser, UnlearnerTests, toy_data, toy_run


class TestUceOnDataConcepts(UnlearnerTests):
    plugin = Uce
    axes = ()
    settings = {"tokens": "after"}
    other_values = {"layers": ("attn2.to_v",), "preserve": ("a blue dot",), "tokens": "last"}
    tested_elsewhere = ("concepts", "guides", "expand")


class TestUceOnNamedConcepts(UnlearnerTests):
    plugin = Uce
    axes = ()
    settings = {"concepts": ("red", "dot"), "guides": ("blue",), "preserve": ("green", "bar"), "tokens": "subject"}
    other_values = {
        "layers": ("attn2.to_v",),
        "concepts": ("red", "bar dot"),
        "guides": ("green", "bar"),
        "preserve": ("white",),
        "tokens": "after",
        "expand": "object",
    }


def table(side, captions, overwrites=None):
    return Examples(side, tuple(captions), None if overwrites is None else tuple(overwrites))


def data_of(pairs_of_captions, retain=()):
    forget = table("forget", [a for a, _ in pairs_of_captions], [b for _, b in pairs_of_captions])
    kept = table("retain", retain)
    return ForgetRetain(forget, kept, forget, kept)


@pytest.fixture(scope="module")
def tiny():
    from vu_diffusers.tiny import tiny_model

    return tiny_model()


@pytest.fixture
def run(tmp_path):
    return toy_run(tmp_path)


def spans(model, *captions):
    return [(prompt.first, prompt.end) for prompt in told_apart(model, *captions)]


def words(text):
    """A tokenizer of whole words, of at most 12 rows."""
    return (0, *[2 + sum(map(ord, word)) * len(word) for word in text.split()][:10], 1)


WORDS = SimpleNamespace(tokens=lambda captions: [words(caption) for caption in captions])


def test_the_subject_is_what_differs():
    assert spans(WORDS, "a star in neon style", "a star in flat style") == [(4, 5), (4, 5)]
    assert spans(WORDS, "a star in neon style", "a circle in flat style") == [(2, 5), (2, 5)]
    assert spans(WORDS, "by van gogh today", "by art today") == [(2, 4), (2, 3)]
    assert spans(WORDS, "cat", "dog") == [(1, 2), (1, 2)]


def test_words_that_are_put_in_share_a_token_beside_them():
    assert spans(WORDS, "a cat here", "a big cat here") == [(2, 3), (2, 4)]
    assert spans(WORDS, "a big cat here", "a cat here") == [(2, 4), (2, 3)]
    assert spans(WORDS, "a cat", "a cat asleep") == [(2, 3), (2, 4)]
    assert spans(WORDS, "no no", "no no no") == [(2, 3), (2, 4)]


def test_captions_with_the_same_tokens_are_subjects_as_a_whole():
    assert spans(WORDS, "a cat", "a cat") == [(1, 3), (1, 3)]
    assert spans(WORDS, "", "") == [(1, 1), (1, 1)]


def test_rows_are_aligned_at_the_end_of_the_subject():
    short, long = Prompt("art", 3, 1, 2), Prompt("van gogh", 4, 1, 3)
    assert list(pairs(long, short, "subject", 6)) == [(1, 1), (2, 1)]
    assert list(pairs(short, long, "subject", 6)) == [(1, 2)]
    assert list(pairs(long, short, "after", 6)) == [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)]
    assert list(pairs(short, long, "after", 6)) == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 5)]
    assert list(pairs(long, short, "last", 6)) == [(2, 1)]


def test_no_words_are_read_as_the_token_before_them():
    nothing, cat = filled(WORDS, "photo of {}", ""), filled(WORDS, "photo of {}", "cat")
    assert (cat.first, cat.end, cat.length) == (3, 4, 5)
    assert (nothing.first, nothing.end, nothing.text) == (3, 3, "photo of")
    assert list(pairs(cat, nothing, "subject", 12)) == [(3, 2)]
    assert list(pairs(cat, nothing, "after", 7)) == [(3, 2), (4, 3), (5, 4), (6, 5)]
    assert list(pairs(filled(WORDS, "{}", "cat"), filled(WORDS, "{}", ""), "last", 12)) == [(1, 0)]


def test_the_last_token_is_that_of_the_prompt():
    cat = filled(WORDS, "picture of {} doing something", "cat")
    dogs = filled(WORDS, "picture of {} doing something", "two dogs")
    assert list(pairs(cat, dogs, "last", 12)) == [(5, 6)]
    assert list(pairs(cat, dogs, "subject", 12)) == [(3, 4)]


def test_what_is_preserved_of_a_text():
    prompt = whole(WORDS, "a blue dog")
    assert list(kept_rows(prompt, "last", 12)) == [3]
    assert list(kept_rows(prompt, "subject", 12)) == [1, 2, 3]
    assert list(kept_rows(prompt, "after", 12)) == list(range(12))


def test_templates_hold_the_guide_in_the_guide(tiny):
    config = UceConfig(concepts=("cat",), guides=("dog",), expand="art")
    seen = []
    model = SimpleNamespace(tokens=tiny.tokens, embed=lambda texts: seen.append(list(texts)) or tiny.embed(texts))
    read_columns(model, data_of([]), config)
    concepts, guides = seen[:2]
    assert concepts == [t.format("cat") for t in TEMPLATES["art"]]
    assert guides == [t.format("dog") for t in TEMPLATES["art"]]
    assert "painting by dog" in guides
    assert not any("cat" in guide for guide in guides)


@pytest.mark.parametrize(("expand", "count"), [("none", 1), ("art", 6), ("object", 7)])
def test_every_concept_is_expanded(tiny, expand, count):
    columns = read_columns(tiny, data_of([]), UceConfig(concepts=("cat", "a dog"), guides=("bird",), expand=expand))
    assert columns.concepts.shape == columns.guides.shape == (32, 2 * count)


def test_columns_are_the_rows_of_the_embeddings(tiny):
    data = data_of([("a cat here", "a dog here")] * 2, retain=["a bird here", "a bird here", "a cow"])
    cat, dog, bird, cow = tiny.embed(["a cat here", "a dog here", "a bird here", "a cow"]).double()
    first, other = (len(tiny.tokens(["a"])[0]) - 1 for _ in range(2))
    ids = {text: tiny.tokens([text])[0] for text in ("a cat here", "a bird here", "a cow")}
    (concept, guide) = told_apart(tiny, "a cat here", "a dog here")
    assert concept.first == first == other
    columns = read_columns(tiny, data, UceConfig(tokens="after"))
    rows = list(pairs(concept, guide, "after", 77))
    torch.testing.assert_close(columns.concepts, torch.stack([cat[i] for i, _ in rows], 1), rtol=0, atol=0)
    torch.testing.assert_close(columns.guides, torch.stack([dog[j] for _, j in rows], 1), rtol=0, atol=0)
    kept = torch.cat([cat[: concept.first], bird, cow]).T
    torch.testing.assert_close(columns.preserved, kept, rtol=0, atol=0)
    last = read_columns(tiny, data, UceConfig(tokens="last"))
    torch.testing.assert_close(last.concepts[:, 0], cat[len(ids["a cat here"]) - 2], rtol=0, atol=0)
    ends = torch.stack([bird[len(ids["a bird here"]) - 2], cow[len(ids["a cow"]) - 2]], 1)
    torch.testing.assert_close(last.preserved, ends, rtol=0, atol=0)


def test_named_texts_are_preserved_instead_of_the_retain_captions(tiny):
    data = data_of([("a cat", "a dog")], retain=["a bird"])
    assert read_columns(tiny, data, UceConfig()).preserved.shape[1] == 1
    assert read_columns(tiny, data, UceConfig(preserve=("a cow", "sky"))).preserved.shape[1] == 2
    named = UceConfig(concepts=("cat",), guides=("dog",))
    assert read_columns(tiny, data, named).preserved.shape[1] == 0


def test_without_guides_concepts_are_read_as_no_words(tiny):
    start = tiny.embed([""])[0, 0].double()
    columns = read_columns(tiny, data_of([]), UceConfig(concepts=("cat",)))
    torch.testing.assert_close(columns.guides[:, 0], start, rtol=0, atol=0)
    assert UceConfig(concepts=("van gogh",), expand="art").guides_each() == ("art",)
    assert UceConfig(concepts=("cat", "cow"), guides=("dog",)).guides_each() == ("dog", "dog")


@pytest.mark.parametrize("count", [1, 5, 10])
def test_many_concepts_in_one_edit(tiny, run, count):
    concepts = tuple(f"thing {number}" for number in range(count))
    config = UceConfig(concepts=concepts, guides=("dog",), erase_scale=1e4, regularization=1e-3, tokens="last")
    edit = Uce(config).unlearn(tiny, data_of([]), run)
    assert edit.facts["erased_columns"] == count
    guide = tiny.embed(["dog"])[0, len(tiny.tokens(["dog"])[0]) - 2]
    with torch.no_grad(), apply_edit(tiny.network, edit):
        changed = {name: layer.weight for name, layer in tiny.network.named_modules() if f"{name}.weight" in edit.parts}
        assert len(changed) == 2 * sum(name.endswith("attn2") for name, _ in tiny.network["unet"].named_modules())
        changed = {name: weight.clone() for name, weight in changed.items()}
    for name, weight in changed.items():
        base = tiny.network.get_submodule(name).weight
        for concept in concepts:
            row = tiny.embed([concept])[0, len(tiny.tokens([concept])[0]) - 2]
            torch.testing.assert_close(weight @ row, base @ guide, rtol=0, atol=2e-2)


def test_the_edit_is_a_low_rank_adapter_where_that_is_smaller(tiny, run):
    edit = Uce(UceConfig(concepts=("cat",), guides=("dog",))).unlearn(tiny, data_of([]), run)
    assert {type(part) for part in edit.parts.values()} == {LowRank}
    assert {(part.rank, part.alpha) for part in edit.parts.values()} == {(1, 1.0)}
    many = Uce(UceConfig(concepts=("cat",), guides=("dog",), tokens="after")).unlearn(tiny, data_of([]), run)
    assert {type(part) for part in many.parts.values()} == {Replace}
    assert many.facts["erased_columns"] == 76


def test_a_low_rank_edit_can_be_exported_as_a_lora(tiny, run):
    from vu_diffusers.lora_layers import lora_factors

    edit = Uce(UceConfig(concepts=("cat", "cow"), guides=("dog",))).unlearn(tiny, data_of([]), run)
    layers = lora_factors(edit, tiny, "tests")
    assert len(layers) == len(edit.parts)
    for layer, (_, part) in zip(layers, edit, strict=True):
        torch.testing.assert_close(layer.change(), part.delta(), rtol=0, atol=1e-6)


def test_grad_mode_and_generators_stay(tiny, run):
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            before = torch.get_rng_state()
            Uce(UceConfig(concepts=("cat",), guides=("dog",))).unlearn(tiny, data_of([]), run)
            assert torch.is_grad_enabled() == enabled
            assert torch.equal(torch.get_rng_state(), before)


def test_nothing_preserved_is_told(tmp_path):
    events = []
    run = toy_run(tmp_path, emit_event=events.append)
    Uce(UceConfig(concepts=("red",), guides=("blue",))).unlearn(ToyDenoiser(), toy_data(), run)
    assert [event.type for event in events] == ["warning"]
    assert "unlearner.preserve" in events[0].values["text"]
    events.clear()
    Uce(UceConfig(concepts=("red",), guides=("blue",), preserve=("dot",))).unlearn(ToyDenoiser(), toy_data(), run)
    Uce(UceConfig()).unlearn(ToyDenoiser(), toy_data(), run)
    assert not events


BAD = {
    "guides without concepts": ({"guides": ("dog",)}, "no concepts"),
    "expand without concepts": ({"expand": "art"}, "no concepts to expand"),
    "other number of guides": ({"concepts": ("a", "b", "c"), "guides": ("d", "e")}, "2 guides for 3 concepts"),
    "guide is the concept": ({"concepts": ("cat",), "guides": ("cat",)}, "'cat' as itself, which has no effect"),
    "guide is the concept in capitals": ({"concepts": ("cat", "A  Dog"), "guides": ("a dog",)}, "'A  Dog' as itself"),
    "default guide is the concept": ({"concepts": ("Art",), "expand": "art"}, "no effect"),
    "concept twice": ({"concepts": ("cat", "dog", "Cat"), "guides": ("x",)}, "'cat' and 'Cat', which are the same"),
    "preserved twice": ({"concepts": ("cat",), "preserve": ("sky", " sky")}, "'sky' and ' sky', which are the same"),
    "concept preserved": ({"concepts": ("cat",), "preserve": ("sky", "cat")}, "'cat' among the concepts and among"),
    "empty concept": ({"concepts": ("cat", " ")}, "without words"),
    "no layers": ({"layers": ()}, "at least one layer"),
    "an empty layer": ({"layers": ("",)}, "at least one layer"),
    "no regularization": ({"regularization": 0.0}, "> 0"),
    "negative preserve scale": ({"preserve_scale": -1.0}, ">= 0"),
    "no erase scale": ({"erase_scale": 0.0}, "> 0"),
    "unknown tokens": ({"tokens": "first"}, "one of 'last', 'subject', 'after'"),
    "unknown expansion": ({"expand": "poem"}, "one of 'none', 'art', 'object'"),
}


@pytest.mark.parametrize(("settings", "said"), BAD.values(), ids=BAD)
def test_settings_that_make_no_sense_are_told(settings, said):
    with pytest.raises(ValueError, match="(?i)" + "".join(f"[{c}]" if c.isalnum() else "." for c in said)):
        UceConfig(**settings)


def refusal(model, data, config, run):
    with pytest.raises(ConfigError) as caught:
        Uce(config).unlearn(model, data, run)
    return caught.value


def test_a_guide_with_the_same_embedding_has_no_effect(run):
    model = ToyDenoiser()
    model.embed = lambda captions: torch.ones(len(captions), 3, 8)
    error = refusal(model, data_of([]), UceConfig(concepts=("cat",), guides=("dog",)), run)
    assert (error.code, "'cat' as 'dog' has no effect" in error.problem) == ("VU-C105", True)
    assert error.where == "unlearner.guides"


def test_a_caption_that_is_its_overwrite_has_no_effect(tiny, run):
    error = refusal(tiny, data_of([("a cat", "a dog"), ("a cow", "A COW")]), UceConfig(), run)
    assert (error.code, "'a cow'" in error.problem, "no effect" in error.problem) == ("VU-C105", True, True)


def test_a_subject_that_is_cut_off_is_told(tiny, run):
    error = refusal(tiny, data_of([]), UceConfig(concepts=("cat " * 80,), guides=("dog",)), run)
    assert error.code == "VU-C106"


def test_nothing_to_forget_is_told(run):
    unnamed = data_of([("", ""), (" ", "a dog"), ("", "a dog")])
    for data in (data_of([]), unnamed, ForgetRetain(*[table("forget", ["a"])] * 4)):
        assert refusal(ToyDenoiser(), data, UceConfig(), run).code == "VU-C107"


def test_layers_are_ends_of_names(tiny):
    found = text_layers(tiny, ("attn2.to_k", "attn2.to_v"))
    assert found
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in found)
    assert all(tiny.network.get_parameter(name) is weight for name, weight in found.items())
    assert set(text_layers(ToyDenoiser(), ("attn2.to_v",))) == {"unet.attn2.to_v.weight"}


def test_layers_that_are_not_there_are_told():
    with pytest.raises(PlanError) as caught:
        text_layers(ToyDenoiser(), ("attn2.to_v", "attn2.to_kk"))
    assert (caught.value.code, "Did you mean 'attn2.to_k'" in caught.value.problem) == ("VU-L100", True)
    with pytest.raises(PlanError):
        text_layers(ToyDenoiser(), ("n2.to_v",))  # not a whole word


def test_layers_that_read_no_text_are_told(tiny, run):
    with pytest.raises(PlanError) as caught:
        Uce(UceConfig(concepts=("cat",), layers=("attn2.to_k", "time_embedding.linear_1"))).unlearn(
            tiny, data_of([]), run
        )
    assert (caught.value.code, "time_embedding.linear_1" in caught.value.problem) == ("VU-L101", True)
