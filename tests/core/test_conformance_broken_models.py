"""Every check of models and data turns red on a plugin that is broken in just that way."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import vu_core.testing as kit
from vu_core import (
    Capability,
    DataError,
    EvaluationItem,
    Run,
    TransformerBlock,
    setting,
)
from vu_core.testing import toys
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case, red
from vu_core.testing.toy_classifier import ToyClassifier
from vu_core.testing.toy_painter import ToyPainter

COUNTER = itertools.count(1)

# Models


def model(plugin: type[Any] = toys.ToyModel, **painter: Any) -> Callable[[], type[Any]]:
    """ToyModel whose painter has attributes replaced."""

    def make() -> type[Any]:
        def load(self: Any, *, device: str, precision: str) -> Any:
            found = toys.ToyModel.load(self, device=device, precision=precision)
            found.__class__ = type("BrokenPainter", (ToyPainter,), {k: v for k, v in painter.items() if callable(v)})
            found.__dict__.update({k: v for k, v in painter.items() if not callable(v)})
            return found

        return case(kit.ModelTests, but(plugin, load=load))

    return make


def loader(change: Callable[[Any], Any]) -> Callable[[], type[Any]]:
    """ToyModel whose loaded painter goes through ``change``."""

    def load(self: Any, *, device: str, precision: str) -> Any:
        return change(toys.ToyModel.load(self, device=device, precision=precision))

    return lambda: case(kit.ModelTests, but(toys.ToyModel, load=load))


SHARED_PAINTER = ToyPainter()


def facts(**changes: Any) -> Callable[[], type[Any]]:
    def inspect_(self: Any) -> Any:
        return attrs.evolve(toys.ToyModel.inspect(self), **changes)

    return lambda: case(kit.ModelTests, but(toys.ToyModel, inspect=inspect_))


def thawed(painter: Any) -> Any:
    painter.network.requires_grad_(True)
    return painter


def noisy(painter: Any) -> Any:
    with torch.no_grad():
        painter.network["unet"].conv_in.bias.add_(next(COUNTER))
    return painter


def always_fp32(painter: Any) -> Any:
    painter.network.float()
    return painter


def drawing(painter: Any) -> Any:
    torch.rand(1)
    return painter


def shrink(self: Any, examples: Any, run: Run) -> Any:
    found = ToyPainter.prepare(self, examples, run)
    return found.with_tensors(latent_mean=found.tensors["latent_mean"] + next(COUNTER))


def batch_mean(self: Any, noisy: Any, t: Any, embedding: Any) -> Any:
    found = ToyPainter.predict(self, noisy, t, embedding)
    return found - found.mean(dim=0, keepdim=True)


def deaf_predict(self: Any, noisy: Any, t: Any, embedding: Any) -> Any:
    return ToyPainter.predict(self, noisy, t, torch.zeros_like(embedding))


def pooled(self: Any, noisy: Any, t: Any, embedding: Any) -> Any:
    return ToyPainter.predict(self, noisy, t, embedding)[:, :1]


def cut(self: Any, noisy: Any, t: Any, embedding: Any) -> Any:
    with torch.no_grad():
        return ToyPainter.predict(self, noisy, t, embedding).requires_grad_()


def backwards(self: Any, z: Any, noise: Any, t: Any) -> Any:
    return ToyPainter.add_noise(self, z, noise, self.timesteps - 1 - t)


def shared_noise(self: Any, prompts: Any, seeds: Any, **settings: Any) -> Any:
    return ToyPainter.generate(self, prompts, [seeds[0]] * len(seeds), **settings)


def floats(self: Any, prompts: Any, seeds: Any, **settings: Any) -> Any:
    return ToyPainter.generate(self, prompts, seeds, **settings) / 255


def unguided(self: Any, prompts: Any, seeds: Any, *, steps: int, guidance: float) -> Any:
    return ToyPainter.generate(self, prompts, seeds, steps=steps, guidance=1.0)


def rising(self: Any, steps: int) -> Any:
    return ToyPainter.sampling_timesteps(self, steps)[::-1]


def beyond(self: Any, steps: int) -> Any:
    return tuple(t + 1 for t in ToyPainter.sampling_timesteps(self, steps))


def too_far(self: Any, captions: Any, noise: Any, *, steps: int, done: Any, guidance: float) -> Any:
    done = [min(each + 1, steps) for each in done]
    return ToyPainter.denoise_partly(self, captions, noise, steps=steps, done=done, guidance=guidance) + 0.1


def unfinished(self: Any, captions: Any, noise: Any, *, steps: int, done: Any, guidance: float) -> Any:
    way = ToyPainter.denoise_partly(self, captions, noise, steps=steps, done=done, guidance=guidance)
    return way + 2.0 * torch.tensor([each == steps and len(captions) > 1 for each in done])[:, None, None, None]


def to_the_last(self: Any, captions: Any, noise: Any, *, steps: int, done: Any, guidance: float) -> Any:
    done = [max(done)] * len(done)
    return ToyPainter.denoise_partly(self, captions, noise, steps=steps, done=done, guidance=guidance)


def deaf_way(self: Any, captions: Any, noise: Any, *, steps: int, done: Any, guidance: float) -> Any:
    return ToyPainter.denoise_partly(self, ["a"] * len(captions), noise, steps=steps, done=done, guidance=guidance)


def tokens(change: Callable[[str, tuple[int, ...], int], Any]) -> Callable[[Any, Any], Any]:
    """Replace the ids of every caption that has words: ``change(caption, ids, number of captions)``."""

    def changed(self: Any, captions: Any) -> Any:
        found = zip(captions, ToyPainter.tokens(self, captions), strict=True)
        return [change(caption, ids, len(captions)) if caption else ids for caption, ids in found]

    return changed


def without_start_and_end(self: Any, captions: Any) -> Any:
    return [ids[1:-1] for ids in ToyPainter.tokens(self, captions)]


def training_mode(self: Any, examples: Any, run: Run) -> Any:
    self.network.train()
    return ToyPainter.prepare(self, examples, run)


def classifier(**attributes: Any) -> Callable[[], type[Any]]:
    """ToyClassifier with attributes replaced once it is loaded."""

    def load(self: Any, *, device: str, precision: str) -> Any:
        found = toys.ToyClassifierModel.load(self, device=device, precision=precision)
        found.__class__ = type("BrokenClassifier", (ToyClassifier,), attributes)
        return found

    return lambda: case(kit.ModelTests, but(toys.ToyClassifierModel, load=load), label_axis="colour")


def centred(self: Any, images: Any) -> Any:
    found = ToyClassifier.logits(self, images)
    return found - found.mean(dim=0, keepdim=True)


def batch_features(self: Any, images: Any) -> Any:
    found = ToyClassifier.features(self, images)
    return found - found.mean(dim=0, keepdim=True)


def unsteady(self: Any, images: Any) -> Any:
    return ToyClassifier.logits(self, images) + next(COUNTER)


def half_logits(self: Any, images: Any) -> Any:
    return self.network["classifier"](images.to(self.dtype))


def cut_logits(self: Any, images: Any) -> Any:
    with torch.no_grad():
        return ToyClassifier.logits(self, images).requires_grad_()


def keeps_all(self: Any, examples: Any, run: Run) -> Any:
    return ToyClassifier.prepare(self, attrs.evolve(examples, reload=False), run)


def keeps_none(self: Any, examples: Any, run: Run) -> Any:
    return attrs.evolve(ToyClassifier.prepare(self, attrs.evolve(examples, reload=True), run), reload=examples.reload)


def coarse(self: Any, batch: Any) -> Any:
    return ((ToyClassifier.images(self, batch) + 1) * 127.5).round() / 127.5 - 1


CLASSIFIER: list[tuple[str, Callable[[], type[Any]], str]] = [
    ("test_logits_per_image", classifier(logits=centred), "logits of an image depend on the batch"),
    ("test_logits_per_image", classifier(features=batch_features), "features of an image depend on the batch"),
    ("test_logits_per_image", classifier(logits=unsteady), "other logits the second time"),
    ("test_logits_per_image", classifier(logits=lambda self, x: torch.ones(len(x), 3)), "do not depend on the image"),
    ("test_logits_per_image", classifier(classes=("red", "green")), "not (images, classes)"),
    ("test_logits_in_half_precision", classifier(logits=half_logits), "are torch.bfloat16"),
    ("test_features_go_into_the_head", classifier(features=ToyClassifier.logits), "no weight lies behind"),
    ("test_features_go_into_the_head", classifier(features=lambda self, x: x.flatten(1)), "not of this network"),
    (
        "test_labels_are_places_among_the_classes",
        classifier(labels=lambda self, batch: batch["label"] + 1),
        "the classes have places [0, 1, 2]",
    ),
    ("test_images_are_those_of_the_data", classifier(images=coarse), "not those that the data gave"),
    ("test_images_that_reload_are_drawn_anew", classifier(prepare=keeps_all), "were kept"),
    ("test_images_that_reload_are_drawn_anew", classifier(prepare=keeps_none), "were not kept"),
    ("test_gradients_reach_the_classifier", classifier(logits=cut_logits), "no gradient reaches"),
]


class BlockNetwork(torch.nn.Module):
    """Pooled pixels, two feed-forward networks beside shortcuts, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)) for _ in range(2)
        )
        self.fc = torch.nn.Linear(3, 3)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(dim=(2, 3))
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.features(x))


class ToyTransformer(ToyClassifier):
    """A classifier that tells its blocks and can be made anew."""

    def __init__(self, weights_seed: int = 0) -> None:
        super().__init__(weights_seed)
        with torch.random.fork_rng():
            torch.manual_seed(weights_seed)
            self._classifier = BlockNetwork()  # type: ignore[assignment]
        self.network = torch.nn.ModuleDict({"classifier": self._classifier}).requires_grad_(False).eval()

    def blocks(self) -> tuple[TransformerBlock, ...]:
        return (block_of(0), block_of(1))

    def fresh(self, seed: int) -> dict[str, torch.Tensor]:
        return dict(ToyTransformer(seed).network.state_dict())


def block_of(place: int, first: int = 0, second: int = 2) -> TransformerBlock:
    name = f"classifier.blocks.{place}"
    return TransformerBlock(name, (f"{name}.{first}.weight", f"{name}.{second}.weight"))


def transformer(**attributes: Any) -> Callable[[], type[Any]]:
    """ToyTransformer with attributes replaced."""

    def load(self: Any, *, device: str, precision: str) -> Any:
        return type("BrokenTransformer", (ToyTransformer,), attributes)(self.config.weights_seed)

    def inspect_(self: Any) -> Any:
        capabilities = frozenset({Capability.CLASSIFY, Capability.BLOCKS, Capability.FRESH})
        return attrs.evolve(toys.ToyClassifierModel.inspect(self), capabilities=capabilities)

    return lambda: case(kit.ModelTests, but(toys.ToyClassifierModel, load=load, inspect=inspect_))


def named(*blocks: TransformerBlock) -> Callable[[], type[Any]]:
    return transformer(blocks=lambda self: blocks)


def draws_in_public(self: Any, seed: int) -> dict[str, torch.Tensor]:
    torch.rand(1)
    return ToyTransformer.fresh(self, seed)


def fresh(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[], type[Any]]:
    return transformer(fresh=lambda self, seed: change(ToyTransformer.fresh(self, seed)))


TRANSFORMER: list[tuple[str, Callable[[], type[Any]], str]] = [
    ("test_the_head_reads_the_features", classifier(head="classifier.hidden"), "are not the features"),
    ("test_blocks_are_in_the_network", named(), "no block"),
    ("test_blocks_are_in_the_network", named(block_of(0), block_of(0)), "two blocks have one name"),
    ("test_blocks_are_in_the_network", named(block_of(0, 0, 0)), "named twice"),
    ("test_blocks_are_in_the_network", named(block_of(2)), "has no module"),
    ("test_blocks_are_in_the_network", named(block_of(0, 0, 1)), "has no weights"),
    ("test_blocks_are_in_the_network", named(block_of(0, 2, 0)), "is 3 wide between 5"),
    (
        "test_blocks_are_in_the_network",
        named(TransformerBlock("classifier.blocks.0", block_of(1).ffn)),
        "lie outside of the block",
    ),
    (
        "test_blocks_are_in_the_network",
        named(attrs.evolve(block_of(0), ffn=("classifier.blocks.0.0.weight", "classifier.blocks.0.2.bias"))),
        "not (m, d) and (d, m)",
    ),
    ("test_blocks_are_in_the_order_of_the_network", named(block_of(1), block_of(0)), "are computed in the order"),
    (
        "test_fresh_tensors_follow_their_seed",
        transformer(fresh=lambda self, seed: ToyTransformer.fresh(self, next(COUNTER))),
        "one seed gave two networks",
    ),
    (
        "test_fresh_tensors_follow_their_seed",
        transformer(fresh=lambda self, seed: ToyTransformer.fresh(self, 7)),
        "two seeds gave one network",
    ),
    ("test_fresh_tensors_follow_their_seed", transformer(fresh=draws_in_public), "torch random numbers"),
    (
        "test_fresh_tensors_follow_their_seed",
        transformer(fresh=lambda self, seed: (self.network.train(), ToyTransformer.fresh(self, seed))[1]),
        "another mode",
    ),
    (
        "test_fresh_tensors_follow_their_seed",
        fresh(lambda tensors: {name: value.half() for name, value in tensors.items()}),
        "not torch.float32",
    ),
    (
        "test_fresh_tensors_follow_their_seed",
        fresh(lambda tensors: {name.removeprefix("classifier."): value for name, value in tensors.items()}),
        "not in the network",
    ),
    (
        "test_fresh_tensors_follow_their_seed",
        fresh(lambda tensors: {name: value for name, value in tensors.items() if not name.endswith("fc.bias")}),
        "no fresh tensor for",
    ),
    (
        "test_fresh_tensors_follow_their_seed",
        fresh(lambda tensors: {name: value[None] for name, value in tensors.items()}),
        "is (1, ",
    ),
]


def generative_facts() -> type[Any]:
    return facts(generation={})()


MODEL: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        (
            "test_recognises_nothing_in_an_empty_folder",
            lambda: case(kit.ModelTests, but(toys.ToyModel, recognises=classmethod(lambda cls, path: True))),
            "is no model",
        ),
        ("test_facts_are_complete", facts(bytes=0), "facts.bytes"),
        ("test_facts_are_complete", generative_facts, "lacks steps or guidance"),
        ("test_loaded_model_is_what_the_facts_say", facts(base_hash="other"), "other facts"),
        ("test_loaded_model_is_what_the_facts_say", lambda: _wrong_count(), "the network has"),
        ("test_loaded_model_is_frozen", loader(thawed), "requires_grad"),
        ("test_loading_twice_gives_the_same_weights", loader(noisy), "weights differ"),
        ("test_loading_twice_gives_the_same_weights", loader(lambda painter: SHARED_PAINTER), "share memory"),
        ("test_precision_is_honoured", loader(always_fp32), "asked for bf16"),
        ("test_nothing_global_changes", loader(drawing), "torch random numbers"),
        ("test_prepare_keeps_the_table", model(prepare=shrink), "columns differ"),
        ("test_denoiser_speaks_in_shapes", model(predict=pooled), "shapes differ"),
        ("test_denoiser_speaks_in_shapes", model(denoiser="transformer"), "no child 'transformer'"),
        ("test_noise_grows_with_the_timestep", model(add_noise=backwards), "mostly noise"),
        ("test_a_row_does_not_depend_on_its_batch", model(predict=batch_mean), "prediction of a row"),
        ("test_captions_matter", model(predict=deaf_predict), "does not depend on the caption"),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda _, ids, count: (0, count, 1))),
            "depend on the others",
        ),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda _, ids, count: tuple(torch.tensor(ids)))),
            "whole numbers",
        ),
        ("test_tokens_are_rows_of_the_embedding", model(tokens=without_start_and_end), "the empty caption has 0"),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda _, ids, count: (*ids, 1, 1))),
            "more tokens than",
        ),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda _, ids, count: ids[:-1])),
            "the same start and end",
        ),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda _, ids, count: (0, 1))),
            "no token for the words",
        ),
        (
            "test_tokens_are_rows_of_the_embedding",
            model(tokens=tokens(lambda caption, ids, _: (0, len(caption), 1))),
            "from the beginning",
        ),
        ("test_gradients_reach_the_denoiser", model(predict=cut), "no gradient reaches"),
        ("test_images_follow_their_seed", model(generate=shared_noise), "two seeds gave one image"),
        ("test_images_follow_their_seed", model(generate=floats), "images are float64"),
        ("test_steps_and_guidance_matter", model(generate=unguided), "guidance changes no image"),
        ("test_timesteps_of_sampling_fall", model(sampling_timesteps=rising), "do not fall"),
        ("test_timesteps_of_sampling_fall", model(sampling_timesteps=beyond), "leave the model's"),
        ("test_way_begins_at_the_noise_and_ends_at_the_image", model(denoise_partly=too_far), "not the noise"),
        ("test_way_begins_at_the_noise_and_ends_at_the_image", model(denoise_partly=unfinished), "from the image"),
        ("test_way_of_a_row_is_its_own", model(denoise_partly=to_the_last), "depends on the others"),
        ("test_way_of_a_row_is_its_own", model(denoise_partly=deaf_way), "prompt changes nothing"),
        ("test_model_is_left_alone", model(prepare=training_mode), "another mode"),
        *CLASSIFIER,
        *TRANSFORMER,
    ]
]


def _wrong_count() -> type[Any]:
    def load(self: Any, *, device: str, precision: str) -> Any:
        found = toys.ToyModel.load(self, device=device, precision=precision)
        found.facts = self.inspect()
        return found

    def inspect_(self: Any) -> Any:
        return attrs.evolve(toys.ToyModel.inspect(self), parameters=1)

    return case(kit.ModelTests, but(toys.ToyModel, inspect=inspect_, load=load))


# Data

T = toys.ToyData


def data(**attributes: Any) -> Callable[[], type[Any]]:
    def make() -> type[Any]:
        plugin = but(T, **attributes)
        return case(kit.DatasetTests, plugin, forget=("colour:red",), other_forget=("shape:dot",))

    return make


def selects(**changes: Any) -> Any:
    def parse(self: Any, forget: Any, overwrite: Any) -> Any:
        found = T.parse(self, forget, overwrite)
        return attrs.evolve(found, concepts=tuple(attrs.evolve(c, **changes) for c in found.concepts))

    return parse


def builds(change: Callable[[Any], Any]) -> Any:
    def build(self: Any, selection: Any, **settings: Any) -> Any:
        return change(T.build(self, selection, **settings))

    return build


def evaluates(change: Callable[[Any], Any]) -> Any:
    def evaluation(self: Any, selection: Any, **settings: Any) -> Any:
        return change(T.evaluation(self, selection, **settings))

    return evaluation


def anything(self: Any, forget: Any, overwrite: Any) -> Any:
    try:
        return T.parse(self, forget, overwrite)
    except DataError:
        return T.parse(self, ["colour:red"], [])


def leaks(self: Any, selection: Any, **settings: Any) -> Any:
    built = T.build(self, selection, **settings)
    forget, _ = toys.split_pairs(selection)
    return attrs.evolve(built, forget=toys.toy_table("forget", forget, "held-out", 2, selection))


def peeks(self: Any, selection: Any, *, resolution: int, run: Run) -> Any:
    self.evaluation(selection, split="held-out", seeds=[0], samples=0, resolution=resolution, run=run)
    return T.build(self, selection, resolution=resolution, run=run)


def overlaps(built: Any) -> Any:
    return attrs.evolve(built, validation_forget=built.forget)


def brighter(built: Any) -> Any:
    load = built.forget.load
    return attrs.evolve(built, forget=attrs.evolve(built.forget, load=lambda r, g: load(r, g) * 3))


def unsteady_images(built: Any) -> Any:
    shift, load = next(COUNTER) / 1e5, built.forget.load
    return attrs.evolve(built, forget=attrs.evolve(built.forget, load=lambda r, g: load(r, g) * (1 - shift)))


def always_anew(built: Any) -> Any:
    return attrs.evolve(built, retain=attrs.evolve(built.retain, reload=True))


def noisy(built: Any) -> Any:
    load = built.forget.load
    drawn = attrs.evolve(built.forget, load=lambda r, g: load(r, g) * torch.rand(1, generator=g))
    return attrs.evolve(built, forget=drawn)


def swapped(built: Any) -> Any:
    return attrs.evolve(built, retain=attrs.evolve(built.forget, side="retain", overwrites=None))


def unwritten(built: Any) -> Any:
    return attrs.evolve(built, forget=attrs.evolve(built.forget, overwrites=built.forget.captions))


def relabelled(found: Any) -> Any:
    items = tuple(EvaluationItem(i.prompt, i.seed, i.labels, not i.forget) for i in found.items)
    return attrs.evolve(found, items=items)


def reseeded(found: Any) -> Any:
    return attrs.evolve(found, items=tuple(attrs.evolve(i, seed=5) for i in found.items))


class HalfJudge(toys.ToyJudge):
    def classify(self, images: Any) -> Any:
        return {"colour": super().classify(images)["colour"]}


@attrs.frozen
class IdleDataConfig(toys.ToyDataConfig):
    """Settings with one that nobody reads."""

    idle: int = setting(1, help="nothing", ge=0)


def with_settings_in_the_digest(self: Any, selection: Any) -> Any:
    manifest = T.manifest(self, selection)
    return attrs.evolve(manifest, digest=manifest.digest + repr(self.config))


DATA: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        (
            "test_recognises_nothing_in_an_empty_folder",
            data(recognises=classmethod(lambda cls, path: True)),
            "is no data",
        ),
        ("test_concepts_are_understood", data(parse=selects(overwrite=None)), "no overwrite"),
        ("test_concepts_are_understood", data(parse=selects(text="red")), "not those of the flags"),
        ("test_concepts_are_understood", data(has_overwrites=False), "has an overwrite"),
        ("test_an_unknown_concept_is_a_data_error", data(parse=anything), "DID NOT RAISE"),
        ("test_metrics_are_named", data(metrics=()), "no default metrics"),
        (
            "test_manifest_tells_what_a_run_sees",
            data(build=builds(lambda b: attrs.evolve(b, validation_retain=b.retain))),
            "build gives",
        ),
        (
            "test_manifest_tells_what_a_run_sees",
            data(manifest=lambda self, s: attrs.evolve(T.manifest(self, s), digest="1")),
            "same digest",
        ),
        (
            "test_every_field_changes_something",
            data(Config=IdleDataConfig, manifest=with_settings_in_the_digest),
            "idle = 2 changes nothing",
        ),
        ("test_sides_are_what_they_say", data(build=builds(swapped)), "of retain shows"),
        ("test_sides_are_what_they_say", data(build=builds(unwritten)), "overwrite caption is empty"),
        (
            "test_sides_are_what_they_say",
            data(has_overwrites=False, parse=selects(overwrite=None)),
            "there are overwrite captions",
        ),
        ("test_images_stand_still_while_measured", data(build=builds(always_anew)), "change at every step"),
        ("test_images_stand_still_while_measured", data(build=builds(noisy)), "the generator changes"),
        ("test_every_class_can_be_forgotten", data(classes=lambda self: {"red": "colour:rot"}), "is listed as"),
        (
            "test_every_class_can_be_forgotten",
            data(classes=lambda self: {"red": "colour:red"}, parse=selects(text="red")),
            "understood as something else",
        ),
        ("test_pixels_are_images", data(build=builds(brighter)), "leave [-1, 1]"),
        ("test_pixels_are_images", data(has_images=False), "has_images is False, but there are images"),
        ("test_held_out_is_not_touched_by_build", data(build=leaks), "held-out images are in"),
        ("test_held_out_is_not_touched_by_build", data(build=peeks), "asks for the held-out part"),
        ("test_train_and_validation_are_disjoint", data(build=builds(overlaps)), "are in both"),
        ("test_building_twice_gives_the_same", data(build=builds(unsteady_images)), "images differ"),
        (
            "test_evaluation_asks_with_the_seeds_of_the_split",
            data(evaluation=evaluates(reseeded)),
            "not those of the split",
        ),
        (
            "test_evaluation_asks_with_the_seeds_of_the_split",
            data(evaluation=evaluates(relabelled)),
            "is marked forget",
        ),
        (
            "test_evaluation_asks_with_the_seeds_of_the_split",
            data(evaluation=evaluates(lambda e: attrs.evolve(e, concepts=()))),
            "does not pass on",
        ),
        (
            "test_samples_are_counted",
            data(evaluation=evaluates(lambda e: attrs.evolve(e, samples=e.items[:3]))),
            "got 3",
        ),
        (
            "test_judge_names_every_axis",
            data(evaluation=evaluates(lambda e: attrs.evolve(e, judge=HalfJudge()))),
            "the judge names",
        ),
        (
            "test_nothing_global_changes",
            data(build=builds(lambda b: (torch.rand(1), b)[1])),
            "torch random numbers",
        ),
        ("test_no_print", lambda: case(kit.DatasetTests, Prints, forget=("colour:red",)), "the class prints"),
    ]
]


class Prints(toys.ToyData):
    """Paint, and say so."""

    def parse(self, forget: Any, overwrite: Any) -> Any:
        print("hello")
        return super().parse(forget, overwrite)


class TestProofs(ProofTests):
    proofs = (
        Proof(kit.ModelTests, MODEL, elsewhere=("test_inspect_reads_no_weights_into_torch",), shared=kit.PluginTests),
        Proof(kit.DatasetTests, DATA, elsewhere=("test_planning_imports_no_torch",), shared=kit.PluginTests),
    )


def heavy(base: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Return a toy whose module imports torch at its top."""
    module = f"heavy_{base.lower()}"
    source = f"import torch\nfrom vu_core.testing.toys import {base}\n\n\nclass Heavy({base}):\n    pass\n"
    (folder / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    found: type[Any] = importlib.import_module(module).Heavy
    return found


def test_a_heavy_model_turns_the_check_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = case(kit.ModelTests, heavy("ToyModel", tmp_path, monkeypatch))
    assert "inspect imports torch" in red(checked, "test_inspect_reads_no_weights_into_torch", tmp_path)


def test_heavy_data_turn_the_check_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = case(kit.DatasetTests, heavy("ToyData", tmp_path, monkeypatch), forget=("colour:red",))
    assert "parse or manifest import torch" in red(checked, "test_planning_imports_no_torch", tmp_path)
