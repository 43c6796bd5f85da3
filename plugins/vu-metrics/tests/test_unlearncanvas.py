"""UA, IRA and CRA: the golden numbers of the benchmark, several concepts, pairs, and what must be refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from vu_core import Capability, Concept, Evaluation, EvaluationItem, MeasureError, ModelFacts, Run, Score
from vu_metrics.accuracies import cra_terms, ira_terms
from vu_metrics.intervals import Z95
from vu_metrics.unlearncanvas import UnlearnCanvas, UnlearnCanvasConfig

TOY = {  # prompt: (style judged right, object judged right); evaluation.md section 2
    ("S1", "O1"): (0, 1),
    ("S1", "O2"): (1, 1),
    ("S2", "O1"): (1, 1),
    ("S2", "O2"): (1, 0),
    ("S3", "O1"): (1, 1),
    ("S3", "O2"): (0, 1),
}


def concept(text: str) -> Concept:
    return Concept(text, dict(part.split(":") for part in text.split("+")))


def evaluation(
    styles: Sequence[str], objects: Sequence[str], seeds: Sequence[int], concepts: Sequence[str], **extra: Any
) -> Evaluation:
    chosen = tuple(concept(text) for text in concepts)
    items = []
    for style in styles:
        for thing in objects:
            for seed in seeds:
                labels = {"style": style, "object": thing}
                forget = any(c.labels.items() <= labels.items() for c in chosen)
                items.append(EvaluationItem(f"A {thing} image in {style} style.", seed, labels, forget))
    axes = {"style": tuple(styles), "object": tuple(objects)}
    return Evaluation(
        "held-out", tuple(items), axes, concepts=chosen, generation={"steps": 2, "guidance": 1.0}, **extra
    )


def observed(asked: Evaluation, right: Mapping[tuple[str, str], tuple[int, int]]) -> dict[str, Any]:
    """The labels a judge gives that is right exactly where ``right`` says so."""
    labels: dict[str, list[str]] = {"style": [], "object": []}
    for item in asked.items:
        style, thing = right[item.labels["style"], item.labels["object"]]
        labels["style"].append(item.labels["style"] if style else "wrong")
        labels["object"].append(item.labels["object"] if thing else "wrong")
    return {"labels": labels}


def perfect(asked: Evaluation) -> dict[str, Any]:
    return {"labels": {axis: [item.labels[axis] for item in asked.items] for axis in asked.axes}}


def scored(concepts: Sequence[str], seeds: Sequence[int] = (0,), **settings: Any) -> dict[str, Score]:
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], seeds, concepts)
    metric = UnlearnCanvas(UnlearnCanvasConfig(**settings))
    scores = metric.scores(perfect(asked), observed(asked, TOY), asked)
    return {score.name: score for score in scores}


@pytest.mark.parametrize(
    ("forget", "exclude", "ua", "ira", "cra"),
    [
        ("style:S1", False, 50, 75, 83.3333),
        ("style:S1", True, 50, 75, 75),
        ("object:O1", False, 0, 66.6667, 66.6667),
    ],
)
def test_golden_toy_of_the_benchmark(forget: str, exclude: bool, ua: float, ira: float, cra: float) -> None:
    scores = scored([forget], cra_exclude_forgotten=exclude)
    assert 100 * scores["ua"].after == pytest.approx(ua, rel=1e-4)
    assert 100 * scores["ira"].after == pytest.approx(ira, rel=1e-4)
    assert 100 * scores["cra"].after == pytest.approx(cra, rel=1e-4)
    assert scores["forget_accuracy"].after == pytest.approx(1 - scores["ua"].after)
    assert scores["ira"].before == scores["cra"].before == 1.0
    assert scores["ua"].before == 0.0


def test_denominators_of_the_full_answer_set() -> None:
    """5,100 images: 51 themes (one of them cannot be forgotten), 20 objects, 5 seeds."""
    themes = [f"T{i}" for i in range(50)] + ["Seed_Images"]
    objects = [f"O{i}" for i in range(20)]
    seeds = (188, 288, 588, 688, 888)
    style = evaluation(themes, objects, seeds, ["style:T3"])
    thing = evaluation(themes, objects, seeds, ["object:O7"])
    assert len(style.items) == 5100
    assert (len(ira_terms(style)), len(cra_terms(style, False))) == (50, 20)
    assert (len(ira_terms(thing)), len(cra_terms(thing, False))) == (19, 51)
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    for asked, images, ira_n, cra_n in ((style, 100, 5000, 5100), (thing, 255, 4845, 5100)):
        scores = {score.name: score for score in metric.scores(perfect(asked), perfect(asked), asked)}
        assert scores["ua"].n == images
        assert (scores["ira"].n, scores["cra"].n) == (ira_n, cra_n)
        assert (scores["ua"].after, scores["ira"].after, scores["cra"].after) == (0.0, 1.0, 1.0)
        assert scores["ua"].seeds == seeds


def test_a_missing_image_is_an_error_and_never_a_better_score() -> None:
    asked = evaluation(["S1", "S2"], ["O1", "O2"], (0,), ["style:S1"])
    short = perfect(asked)
    short["labels"]["style"] = short["labels"]["style"][:-1]
    with pytest.raises(MeasureError, match="3 judged images on the axis 'style', but 4"):
        UnlearnCanvas(UnlearnCanvasConfig()).scores(perfect(asked), short, asked)


def test_several_concepts_in_one_edit() -> None:
    scores = scored(["style:S1", "style:S2"])
    assert scores["ua"].after == pytest.approx(1 / 4)  # S1O1 of the four forget images is gone
    assert scores["ua"].n == 4
    assert scores["ua[style:S1]"].after == 0.5
    assert scores["ua[style:S2]"].after == 0.0
    assert scores["ira"].after == 0.5  # only S3 is left of the styles
    assert scores["cra"].after == pytest.approx((3 / 3 + 2 / 3) / 2)


def test_concepts_on_both_axes() -> None:
    scores = scored(["style:S1", "object:O1"])
    assert scores["ua"].n == scores["forget_accuracy"].n == 4  # S1O1, S1O2, S2O1, S3O1: S1O1 counts once
    assert scores["ua"].after == 0.0  # the style of S1O1 is gone, its object is not
    assert (scores["ua[style:S1]"].n, scores["ua[object:O1]"].n) == (2, 3)
    assert scores["ira"].n == 5  # all but S1O1; S2O2 and S3O2 stand behind two terms
    assert scores["cra"].n == 5  # the same terms: what is of one concept's kind is of the other's other kind
    assert scores["ira"].after == pytest.approx((2 / 2 + 1 / 2 + 2 / 3) / 3)  # S2, S3, O2
    assert scores["cra"].after == pytest.approx((2 / 3 + 2 / 2 + 1 / 2) / 3)  # O2, S2, S3


def test_an_image_of_two_concepts_is_gone_when_neither_is_recognised() -> None:
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], (0,), ["style:S1", "object:O1"])
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    for right, gone in (((0, 0), 1), ((1, 0), 0), ((0, 1), 0), ((1, 1), 0)):
        after = observed(asked, {**dict.fromkeys(TOY, (1, 1)), ("S1", "O1"): right})
        ua = {score.name: score for score in metric.scores(perfect(asked), after, asked)}["ua"]
        assert (ua.after, ua.n) == (gone / 4, 4), right


def test_help_says_what_was_averaged() -> None:
    labels, pair = scored(["style:S1"]), scored(["object:O1+style:S1"])
    assert labels["ira"].help == "mean accuracy over 2 other labels of the same kind"
    assert labels["cra"].help == "mean accuracy over 2 labels of the other kinds"
    assert pair["ira"].help == (
        "mean accuracy over 2 groups of images that share exactly one label with a forgotten pair"
    )
    assert "labels of the other kinds" not in pair["cra"].help
    both = scored(["object:O1+style:S1", "style:S2"])["ira"].help
    assert "2 other labels of the same kind and 2 groups of images" in both


def test_a_pair() -> None:
    scores = scored(["object:O1+style:S1"])
    assert (scores["ua"].n, scores["ua"].after) == (1, 1.0)  # the style of S1O1 is gone, so the pair is
    assert scores["ira"].n == 3  # S1O2; S2O1, S3O1
    assert scores["ira"].after == pytest.approx((1 + 2 / 2) / 2)
    assert scores["cra"].n == 2  # S2O2, S3O2
    assert scores["cra"].after == 0.0


def test_intervals() -> None:
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], range(40), ["style:S1"])
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    after = observed(asked, TOY)
    scores = {score.name: score for score in metric.scores(perfect(asked), after, asked)}
    for score in scores.values():
        assert score.ci_low is not None
        assert score.ci_high is not None
        assert 0 <= score.ci_low <= score.after <= score.ci_high <= 1
    assert scores["ua"].ci_low == pytest.approx(0.3930, abs=1e-3)  # Wilson of 40 / 80
    again = {score.name: score for score in metric.scores(perfect(asked), after, asked)}
    assert again == scores
    same = {score.name: score for score in metric.scores(after, after, asked)}
    for name in ("ua", "ira", "cra"):
        low, high, own = same[name].change_low, same[name].change_high, same[name].ci_low
        assert low is not None
        assert high is not None
        assert own is not None
        assert low < 0 < high
        assert high < same[name].after - own  # paired: equal outcomes cancel for the most part


@pytest.mark.parametrize(("right", "golden"), [(1, (60.30, 100.0)), (0, (0.0, 39.70))])
def test_outcomes_that_all_agree_have_an_interval(right: int, golden: tuple[float, float]) -> None:
    """Two objects of three images: each Wilson bound is 56.15 points away, the mean 56.15 / sqrt(2)."""
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], (0,), ["style:S1"])
    after = observed(asked, dict.fromkeys(TOY, (right, right)))
    scores = UnlearnCanvas(UnlearnCanvasConfig()).scores(perfect(asked), after, asked)
    cra = {score.name: score for score in scores}["cra"]
    assert cra.n == 6
    assert cra.ci_low is not None
    assert cra.ci_high is not None
    assert (round(100 * cra.ci_low, 2), round(100 * cra.ci_high, 2)) == golden


def test_changes_have_width_even_when_nothing_changed() -> None:
    """Newcombe's interval of 40 images of a label that were right both times is 0 +- 8.76 points."""
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], range(20), ["style:S1"])
    scores = UnlearnCanvas(UnlearnCanvasConfig()).scores(perfect(asked), perfect(asked), asked)
    found = {score.name: (score.change_low, score.change_high) for score in scores}
    one = Z95**2 / (40 + Z95**2)  # 1 - the lower Wilson bound of 40 of 40
    assert one == pytest.approx(0.0876, abs=1e-4)
    assert found["ua"] == pytest.approx((-one, one))
    assert found["forget_accuracy"] == pytest.approx((-one, one))
    two_labels = math.sqrt(2 * one**2) / 2  # S2 and S3, 40 images each
    assert found["ira"] == pytest.approx((-two_labels, two_labels))
    objects = Z95**2 / (60 + Z95**2) / math.sqrt(2)  # O1 and O2, 60 images each
    assert found["cra"] == pytest.approx((-objects, objects))


def test_an_interval_of_one_image_per_label_is_wide() -> None:
    asked = evaluation(["S1", "S2", "S3"], ["O1"], (0,), ["style:S1"])
    after = observed(asked, {("S1", "O1"): (0, 1), ("S2", "O1"): (1, 1), ("S3", "O1"): (0, 1)})
    ira = {s.name: s for s in UnlearnCanvas(UnlearnCanvasConfig()).scores(perfect(asked), after, asked)}["ira"]
    assert ira.ci_low is not None
    assert ira.ci_high is not None
    assert (ira.after, ira.ci_low, ira.ci_high) == pytest.approx((0.5, 0.5 - 0.39672, 0.5 + 0.39672), abs=1e-4)


def test_the_change_of_ua_is_that_of_newcombe() -> None:
    asked = evaluation(["S1", "S2"], ["O1"], range(50), ["style:S1"])
    gone = [*range(36), *range(36, 48)]  # 36 + 12 after, 36 + 2 before: the example of Newcombe 1998
    was = [*range(36), 48, 49]
    before, after = perfect(asked), perfect(asked)
    for labels, rows in ((before, was), (after, gone)):
        for row in rows:
            labels["labels"]["style"][row] = "wrong"
    ua = {s.name: s for s in UnlearnCanvas(UnlearnCanvasConfig()).scores(before, after, asked)}["ua"]
    assert (ua.before, ua.after) == (0.76, 0.96)
    assert (ua.change_low, ua.change_high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("style_right", [0, 1])
@pytest.mark.parametrize("min_ua", [0.0, 0.5])
def test_a_run_that_changed_nothing_is_never_ok(style_right: int, min_ua: float) -> None:
    """Neither 0 % before and after, nor 100 %, nor anything between: identical observations are doubted."""
    for forgotten in (("S1", "O1"), ("S1", "O2"), None):
        asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], (0,), ["style:S1"])
        same = observed(asked, {key: (int(style_right or key == forgotten), 1) for key in TOY})
        metric = UnlearnCanvas(UnlearnCanvasConfig(min_ua=min_ua))
        doubts = metric.doubts(metric.scores(same, same, asked))
        assert [status for status, _ in doubts] == ["not_forgotten"]


def test_forgetting_that_rose_from_half_is_fine() -> None:
    asked = evaluation(["S1", "S2", "S3"], ["O1", "O2"], (0,), ["style:S1"])
    before = observed(asked, {**dict.fromkeys(TOY, (1, 1)), ("S1", "O2"): (0, 1)})
    after = observed(asked, {**dict.fromkeys(TOY, (1, 1)), ("S1", "O1"): (0, 1), ("S1", "O2"): (0, 1)})
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    assert list(metric.doubts(metric.scores(before, after, asked))) == []
    assert metric.doubts(metric.scores(after, before, asked))[0][0] == "not_forgotten"


def test_doubts() -> None:
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    card = scored(["style:S1", "object:O1"])
    doubts = metric.doubts(list(card.values()))
    assert {status for status, _ in doubts} == {"not_forgotten", "retain_collapsed"}
    assert any("object:O1" in sentence for _, sentence in doubts)
    fine = UnlearnCanvas(UnlearnCanvasConfig(min_ua=0.0, max_fall=1.0))
    assert list(fine.doubts(list(scored(["style:S1"]).values()))) == []


def test_empty_is_an_error() -> None:
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    nothing = attrs.evolve(evaluation(["S1", "S2"], ["O1"], (0,), ["style:S1"]), items=())
    with pytest.raises(MeasureError, match="no image to judge"):
        metric.scores({"labels": {}}, {"labels": {}}, nothing)
    unknown = evaluation(["S1", "S2"], ["O1"], (0,), [])
    with pytest.raises(MeasureError, match="names no concept"):
        metric.scores(perfect(unknown), perfect(unknown), unknown)
    absent = evaluation(["S1", "S2"], ["O1"], (0,), ["style:S9"])
    with pytest.raises(MeasureError, match="shows style:S9"):
        metric.scores(perfect(absent), perfect(absent), absent)
    everything = evaluation(["S1"], ["O1", "O2"], (0,), ["style:S1"])
    with pytest.raises(MeasureError, match="IRA is a mean over what is kept"):
        metric.scores(perfect(everything), perfect(everything), everything)


class Painter:
    """A model that writes seed and prompt length into the image."""

    facts = ModelFacts(
        "painter", "", "0", frozenset({Capability.GENERATE}), 1, 4, 8, generation={"steps": 3, "guidance": 1}
    )

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, float]] = []

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
    ) -> np.ndarray[Any, Any]:
        self.calls.append((len(prompts), steps, guidance))
        images = np.zeros((len(prompts), 8, 8, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = [seed + int(prompt[-8]) for prompt, seed in zip(prompts, seeds, strict=True)]
        return images


class Parity:
    """Names the object by whether the first pixel is even."""

    fingerprint = "parity"

    def classify(self, images: np.ndarray[Any, Any]) -> Mapping[str, Sequence[str]]:
        return {"object": ["O1" if v % 2 else "O2" for v in images[:, 0, 0, 0]], "style": ["S1"] * len(images)}


def run(tmp_path: Path) -> Run:
    return Run(seed=0, device="cpu", precision="fp32", folder=tmp_path, cache=tmp_path)


def test_observe_generates_every_item_once_in_order(tmp_path: Path) -> None:
    asked = evaluation(["S1", "S2"], ["O1", "O2"], (0, 1, 2), ["style:S1"], judge=Parity())
    model = Painter()
    whole = UnlearnCanvas(UnlearnCanvasConfig()).observe(model, asked, run(tmp_path))
    parts = UnlearnCanvas(UnlearnCanvasConfig(batch_size=5)).observe(model, asked, run(tmp_path))
    assert whole == parts
    assert [n for n, _, _ in model.calls] == [12, 5, 5, 2]
    assert {(steps, guidance) for _, steps, guidance in model.calls} == {(2, 1.0)}  # those of the evaluation
    expected = ["O1" if (item.seed + int(item.prompt[-8])) % 2 else "O2" for item in asked.items]
    assert list(whole["labels"]["object"]) == expected
    own = attrs.evolve(asked, generation={})
    UnlearnCanvas(UnlearnCanvasConfig()).observe(model, own, run(tmp_path))
    assert model.calls[-1][1:] == (3, 1.0)  # those of the model


def test_observe_refuses_what_it_cannot_judge(tmp_path: Path) -> None:
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    asked = evaluation(["S1", "S2"], ["O1", "O2"], (0,), ["style:S1"])
    with pytest.raises(MeasureError, match="needs data with a judge"):
        metric.observe(Painter(), asked, run(tmp_path))

    class Mute:
        facts = Painter.facts

    with pytest.raises(MeasureError, match="generates images"):
        metric.observe(Mute(), attrs.evolve(asked, judge=Parity()), run(tmp_path))

    class Lazy(Parity):
        def classify(self, images: np.ndarray[Any, Any]) -> Mapping[str, Sequence[str]]:
            return {"object": ["O1"] * (len(images) - 1), "style": ["S1"] * len(images)}

    with pytest.raises(MeasureError, match="3 of 4 images on the axis 'object'"):
        metric.observe(Painter(), attrs.evolve(asked, judge=Lazy()), run(tmp_path))


def test_fingerprint_is_about_the_question_and_not_about_the_concept() -> None:
    metric = UnlearnCanvas(UnlearnCanvasConfig())
    asked = evaluation(["S1", "S2"], ["O1", "O2"], (0, 1), ["style:S1"], judge=Parity())
    other = evaluation(["S1", "S2"], ["O1", "O2"], (0, 1), ["object:O2"], judge=Parity())
    assert metric.fingerprint(asked) == metric.fingerprint(other)
    changed = [
        attrs.evolve(asked, split="validation"),
        attrs.evolve(asked, generation={"steps": 3, "guidance": 1.0}),
        attrs.evolve(asked, items=asked.items[1:]),
        attrs.evolve(asked, judge=None),
    ]
    prints = {metric.fingerprint(asked), *(metric.fingerprint(e) for e in changed)}
    prints.add(UnlearnCanvas(UnlearnCanvasConfig(cra_exclude_forgotten=True)).fingerprint(asked))
    assert len(prints) == 6
    assert UnlearnCanvas(UnlearnCanvasConfig(batch_size=1)).fingerprint(asked) == metric.fingerprint(asked)
