"""Conformance of a model plugin."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch

from vu_core.contracts.model import (
    Blocks,
    Classifier,
    Denoiser,
    Fresh,
    Model,
    TextToImage,
    Tokens,
    Trajectory,
)
from vu_core.data import Batch, Examples
from vu_core.plan import Capability, ModelFacts
from vu_core.testing.fresh_process import heavy_imports
from vu_core.testing.plugin_tests import PluginTests
from vu_core.testing.toys import toy_run
from vu_core.testing.watching import Snapshot, nothing_global_changes, tensor_digest

PROTOCOLS = {
    Capability.DENOISE: Denoiser,
    Capability.GENERATE: TextToImage,
    Capability.CLASSIFY: Classifier,
    Capability.TOKENS: Tokens,
    Capability.TRAJECTORY: Trajectory,
    Capability.BLOCKS: Blocks,
    Capability.FRESH: Fresh,
}


class ModelTests(PluginTests):
    """Checks of a model plugin; set ``plugin`` and, where it needs one, ``ref`` (or `make_ref`).

    What is asked of the loaded model follows from the capabilities that its facts name. ``label_axis`` is the label of
    an example that names its class, for classifiers.
    """

    ref: ClassVar[str] = ""
    prompts: ClassVar[tuple[str, str]] = ("a red dot", "a blue bar")
    settings_to_generate: ClassVar[dict[str, Any]] = {"steps": 2, "guidance": 1.5}
    label_axis: ClassVar[str] = "class"

    def make_ref(self) -> str:
        """Return the folder or hub id that is loaded."""
        return self.ref

    def make(self, **changes: Any) -> Any:
        """Return the plugin under test."""
        return self.plugin(self.make_ref(), self.config(**changes))

    def load(self, precision: str = "fp32") -> Any:
        """Return the loaded model."""
        return self.make().load(device="cpu", precision=precision)

    def loaded_with(self, capability: Capability) -> Any:
        """Return the loaded model, or skip the test when its facts do not name the capability."""
        if capability not in self.make().inspect().capabilities:
            pytest.skip(f"the model has no capability {capability.value!r}")
        return self.load()

    def outcome(self, config: Any, folder: Path) -> Any:
        """Return the facts and the weights."""
        plugin = self.plugin(self.make_ref(), config)
        model = plugin.load(device="cpu", precision="fp32")
        return attrs.asdict(plugin.inspect()), tensor_digest(model.network.state_dict())

    def examples(self, model: Any, count: int = 3) -> Examples:
        """Return images of noise in the resolution of the model; for a classifier, of its classes in turn."""
        images = noise(model, count)
        captions = tuple(self.prompts[i % 2] for i in range(count))
        classes = getattr(model, "classes", ())
        labels = {self.label_axis: tuple(classes[i % len(classes)] for i in range(count))} if classes else {}
        return Examples("forget", captions, captions, labels, load=lambda row, generator: images[row])

    def batch(self, model: Any, folder: Path, rows: tuple[int, ...] = (0, 1, 2)) -> Batch:
        """Return prepared rows of `examples`; a row has the same draws in every batch."""
        run = toy_run(folder)
        examples = model.prepare(self.examples(model), run)
        return Batch(examples, rows, 0, rows, run, torch.device("cpu"))

    def test_inspect_reads_no_weights_into_torch(self) -> None:
        """Planning is quick: recognising and inspecting a model import no torch."""
        heavy = heavy_imports(self.plugin, self.make_ref(), self.settings, [["inspect", []]])
        assert not heavy, f"inspect imports {', '.join(heavy)}"

    def test_recognises_nothing_in_an_empty_folder(self, tmp_path: Path) -> None:
        """An empty folder and a missing one are no model; asking raises nothing."""
        assert self.plugin.recognises(tmp_path) is False, "an empty folder is no model"
        assert self.plugin.recognises(tmp_path / "missing") is False, "a missing folder is no model"

    def test_facts_are_complete(self) -> None:
        """What a plan needs is known from the files alone, and the same each time."""
        facts = self.make().inspect()
        assert isinstance(facts, ModelFacts), "inspect must return ModelFacts"
        assert facts == self.make().inspect(), "inspected twice, the facts differ"
        assert facts.name, "no name"
        assert facts.base_hash, "no base hash"
        assert facts.capabilities, "no capabilities"
        for field in ("parameters", "bytes", "resolution", "forward_gflops"):
            assert getattr(facts, field) > 0, f"facts.{field} is not positive"
        if Capability.GENERATE in facts.capabilities:
            assert {"steps", "guidance"} <= set(facts.generation), "facts.generation lacks steps or guidance"

    def test_loaded_model_is_what_the_facts_say(self) -> None:
        """Same facts, as many parameters, and a protocol for every capability."""
        facts, model = self.make().inspect(), self.load()
        assert isinstance(model, Model), "the loaded model lacks facts, network or prepare"
        assert model.facts == facts, "the loaded model has other facts than inspect told"
        counted = sum(parameter.numel() for parameter in model.network.parameters())
        assert counted == facts.parameters, f"facts.parameters is {facts.parameters}, the network has {counted}"
        for capability in facts.capabilities & PROTOCOLS.keys():
            wanted = PROTOCOLS[capability]
            assert isinstance(model, wanted), f"{capability.value!r} is claimed, but {wanted.__name__} is not there"

    def test_loaded_model_is_frozen(self) -> None:
        """Nothing requires a gradient, everything is in evaluation mode."""
        network = self.load().network
        trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        assert not trainable, f"requires_grad: {trainable[:3]}"
        assert not any(module.training for module in network.modules()), "a module is in training mode"

    def test_loading_twice_gives_the_same_weights(self) -> None:
        """Two loads are equal and share no tensor."""
        first, second = self.load().network, self.load().network
        assert tensor_digest(first.state_dict()) == tensor_digest(second.state_dict()), "loaded twice, weights differ"
        shared = {t.data_ptr() for t in first.state_dict().values()} & {
            t.data_ptr() for t in second.state_dict().values()
        }
        assert not shared, "two loaded models share memory"

    def test_precision_is_honoured(self) -> None:
        """The frozen network is in the precision that was asked for."""
        kinds = {parameter.dtype for parameter in self.load("bf16").network.parameters()}
        assert kinds == {torch.bfloat16}, f"asked for bf16, got {kinds}"

    def test_nothing_global_changes(self, tmp_path: Path) -> None:
        """Loading and preparing leave generators, flags and threads of the process alone."""
        self.load()  # what libraries do once at their first import is not the plugin's
        with nothing_global_changes():
            model = self.load()
            model.prepare(self.examples(model), toy_run(tmp_path))

    def test_prepare_keeps_the_table(self, tmp_path: Path) -> None:
        """Rows, captions and overwrites stay; preparing twice changes nothing; the same run gives the same columns."""
        model = self.load()
        examples = self.examples(model)
        once = model.prepare(examples, toy_run(tmp_path))
        assert (once.captions, once.overwrites, once.side) == (examples.captions, examples.overwrites, examples.side)
        again = model.prepare(once, toy_run(tmp_path))
        fresh = model.prepare(self.examples(model), toy_run(tmp_path))
        assert tensor_digest(once.tensors) == tensor_digest(again.tensors), "prepared twice, the columns differ"
        assert tensor_digest(once.tensors) == tensor_digest(fresh.tensors), "the same run gave other columns"

    def test_denoiser_speaks_in_shapes(self, tmp_path: Path) -> None:
        """Latents, noise, prediction and target have one shape; captions are embedded one by one."""
        model = self.loaded_with(Capability.DENOISE)
        batch = self.batch(model, tmp_path)
        z, t = model.latents(batch), torch.tensor([0, model.timesteps // 2, model.timesteps - 1])
        noise = batch.normal("noise", z.shape[1:])
        embedding = model.embed(batch.captions)
        noisy = model.add_noise(z, noise, t)
        prediction = model.predict(noisy, t, embedding)
        assert z.shape[0] == embedding.shape[0] == 3, "one latent and one embedding per row"
        assert noisy.shape == prediction.shape == model.target(z, noise, t).shape == z.shape, "shapes differ"
        assert bool(torch.isfinite(prediction).all()), "the prediction is not finite"
        assert model.denoiser in dict(model.network.named_children()), f"the network has no child {model.denoiser!r}"

    def test_noise_grows_with_the_timestep(self, tmp_path: Path) -> None:
        """At the first timestep a noisy latent is nearly the latent, at the last nearly the noise."""
        model = self.loaded_with(Capability.DENOISE)
        batch = self.batch(model, tmp_path, (0,))
        z = model.latents(batch)
        noise = batch.normal("noise", z.shape[1:])
        early, late = (model.add_noise(z, noise, torch.tensor([t])) for t in (0, model.timesteps - 1))
        assert float((early - z).norm()) < float((early - noise).norm()), "the first timestep is mostly noise"
        assert float((late - noise).norm()) < float((late - z).norm()), "the last timestep is mostly image"

    def test_a_row_does_not_depend_on_its_batch(self, tmp_path: Path) -> None:
        """Latents, embedding and prediction of a row are the same alone and among others."""
        model = self.loaded_with(Capability.DENOISE)
        whole, alone = self.batch(model, tmp_path), self.batch(model, tmp_path, (1,))
        t = torch.tensor([5, 5, 5])
        for name, many, one in (
            ("latents", model.latents(whole)[1:2], model.latents(alone)),
            ("embedding", model.embed(whole.captions)[1:2], model.embed(alone.captions)),
            (
                "prediction",
                model.predict(model.latents(whole), t, model.embed(whole.captions))[1:2],
                model.predict(model.latents(alone), t[:1], model.embed(alone.captions)),
            ),
        ):
            assert torch.allclose(many, one, rtol=1e-4, atol=1e-5), f"{name} of a row depends on its batch"

    def test_captions_matter(self, tmp_path: Path) -> None:
        """Equal captions have equal embeddings, others have others, and the prediction follows."""
        model = self.loaded_with(Capability.DENOISE)
        first, second, again = model.embed([*self.prompts, self.prompts[0]])
        assert torch.equal(first, again), "equal captions have two embeddings"
        assert not torch.equal(first, second), "two captions have one embedding"
        z, t = model.latents(self.batch(model, tmp_path, (0,))), torch.tensor([model.timesteps // 2])
        predictions = [model.predict(z, t, embedding[None]) for embedding in (first, second)]
        assert not torch.equal(*predictions), "the prediction does not depend on the caption"

    def test_tokens_are_rows_of_the_embedding(self) -> None:
        """A start, what the caption says, an end; no more tokens than rows, and a longer caption begins alike."""
        model = self.loaded_with(Capability.TOKENS)
        first, other = self.prompts
        captions = [first, other, f"{first} {other}", "", first]
        with nothing_global_changes():
            short, second, long, empty, again = model.tokens(captions)
        rows = model.embed(captions).shape[1]
        cut = model.tokens([" ".join([first] * rows)])[0]
        assert short == again == model.tokens([first])[0], "the tokens of a caption depend on the others"
        assert all(isinstance(i, int) for i in (*short, *empty)), "token ids must be plain whole numbers"
        assert len(empty) == 2, f"the empty caption has {len(empty)} tokens, not a start and an end"
        assert all(len(ids) <= rows for ids in (short, second, long, cut)), f"more tokens than the {rows} rows"
        ends = {(ids[0], ids[-1]) for ids in (short, second, long, cut, empty)}
        assert len(ends) == 1, "not every caption has the same start and end token"
        assert len(short) > 2, "no token for the words of a caption: padding begins at once"
        assert long[: len(short) - 1] == short[:-1], "a caption that goes on has other tokens from the beginning"

    def test_gradients_reach_the_denoiser(self, tmp_path: Path) -> None:
        """What is trained sits in the denoiser, so gradients must arrive there."""
        model = self.loaded_with(Capability.DENOISE)
        weight = next(p for p in model.network[model.denoiser].parameters() if p.dim() > 1)
        weight.requires_grad_(True)
        z = model.latents(self.batch(model, tmp_path, (0,)))
        model.predict(z, torch.tensor([1]), model.embed(self.prompts[:1])).square().mean().backward()
        assert weight.grad is not None, "no gradient reaches the denoiser"
        assert bool(weight.grad.any()), "the gradient of the denoiser is zero"

    def test_images_follow_their_seed(self) -> None:
        """An image depends on prompt and seed, never on the batch; uint8, in the model's resolution."""
        model = self.loaded_with(Capability.GENERATE)
        size = model.facts.resolution
        a, b = self.prompts
        with nothing_global_changes():
            images = model.generate([a, a, b], [1, 2, 1], **self.settings_to_generate)
        assert isinstance(images, np.ndarray), "images must be one numpy array"
        assert images.dtype == np.uint8, f"images are {images.dtype}"
        assert images.shape == (3, size, size, 3), f"images have the shape {images.shape}"
        assert not np.array_equal(images[0], images[1]), "two seeds gave one image"
        assert not np.array_equal(images[0], images[2]), "two prompts gave one image"
        alone = model.generate([a], [2], **self.settings_to_generate)[0]
        difference = np.abs(alone.astype(int) - images[1].astype(int)).max()
        assert difference <= 2, f"an image changes by {difference} of 255 levels with its batch"

    def test_steps_and_guidance_matter(self) -> None:
        """Sampling settings are used."""
        model = self.loaded_with(Capability.GENERATE)
        usual = model.generate([self.prompts[0]], [1], **self.settings_to_generate)
        for key, value in (("steps", 4), ("guidance", 5.0)):
            other = model.generate([self.prompts[0]], [1], **{**self.settings_to_generate, key: value})
            assert not np.array_equal(usual, other), f"{key} changes no image"

    def test_timesteps_of_sampling_fall(self) -> None:
        """As many timesteps as steps, from the noisiest down, all of the model's."""
        model = self.loaded_with(Capability.TRAJECTORY)
        for steps in (1, 4):
            timesteps = model.sampling_timesteps(steps)
            assert len(timesteps) == steps, f"{steps} steps pass through {len(timesteps)} timesteps"
            assert all(isinstance(t, int) for t in timesteps), "timesteps must be whole numbers"
            assert list(timesteps) == sorted(set(timesteps), reverse=True), f"the timesteps do not fall: {timesteps}"
            assert 0 <= timesteps[-1] <= timesteps[0] < model.timesteps, f"timesteps leave the model's: {timesteps}"

    def test_way_begins_at_the_noise_and_ends_at_the_image(self) -> None:
        """Nothing done is the noise; everything done is what `generate` shows; each step in between changes something.

        For samplers that draw no noise on the way.
        """
        model = self.loaded_with(Capability.TRAJECTORY)
        steps, guidance = self.settings_to_generate["steps"], self.settings_to_generate["guidance"]
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(3))
        rows, prompt = steps + 1, self.prompts[0]
        with nothing_global_changes():
            z = model.denoise_partly(
                [prompt] * rows, noise.repeat(rows, 1, 1, 1), steps=steps, done=range(rows), guidance=guidance
            )
        assert z.shape == (rows, *model.latent_shape), f"latents have the shape {tuple(z.shape)}"
        assert not z.requires_grad, "latents on the way carry a gradient"
        assert torch.allclose(z[0], noise[0], rtol=1e-2, atol=1e-2), "with nothing done, the latent is not the noise"
        assert all(not torch.equal(a, b) for a, b in pairwise(z)), "a step changes nothing"
        if Capability.GENERATE in model.facts.capabilities:
            image = model.generate([prompt], [3], steps=steps, guidance=guidance)[0].astype(int)
            decoded = ((model.decode(z[-1:])[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).numpy()
            difference = np.abs(decoded - image).max()
            assert difference <= 2, f"what is done to the end is {difference:.0f} of 255 levels from the image"

    def test_way_of_a_row_is_its_own(self) -> None:
        """Where others stop, and what they ask for, changes nothing for a row; prompt and guidance do."""
        model = self.loaded_with(Capability.TRAJECTORY)
        a, b = self.prompts
        noise = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(4))
        noise[2] = noise[1]

        def go(rows: list[int], captions: list[str], done: list[int], guidance: float = 2.0) -> torch.Tensor:
            latents: torch.Tensor = model.denoise_partly(captions, noise[rows], steps=4, done=done, guidance=guidance)
            return latents

        together = go([0, 1, 2, 3], [a, a, b, b], [4, 2, 2, 0])
        for row, (caption, done) in enumerate(((a, 4), (a, 2), (b, 2), (b, 0))):
            alone = go([row], [caption], [done])[0]
            assert torch.allclose(together[row], alone, rtol=1e-3, atol=1e-3), "a row depends on the others"
        assert not torch.equal(together[1], together[2]), "the prompt changes nothing on the way"
        assert not torch.equal(together[1], go([1], [a], [2], 5.0)[0]), "guidance changes nothing on the way"

    def test_model_is_left_alone(self, tmp_path: Path) -> None:
        """Preparing, predicting and generating change no weight, mode or flag."""
        model = self.load()
        before = Snapshot.of(model.network)
        model.prepare(self.examples(model), toy_run(tmp_path))
        if Capability.GENERATE in model.facts.capabilities:
            model.generate([self.prompts[0]], [0], **self.settings_to_generate)
        assert not before.differences(model.network), before.differences(model.network)

    def test_logits_per_image(self) -> None:
        """A classifier gives a finite logit per class and a row of features per image, whatever the batch."""
        model = self.loaded_with(Capability.CLASSIFY)
        images = noise(model, 3)
        logits, features = model.logits(images), model.features(images)
        assert logits.shape == (3, len(model.classes)), f"logits are {tuple(logits.shape)}, not (images, classes)"
        assert features.shape[0] == 3, "one row of features per image"
        assert features.dim() == 2, "features are (B, D)"
        assert logits.dtype == torch.float32, f"logits are {logits.dtype}"
        assert bool(logits.isfinite().all()), "a logit is not finite"
        assert not torch.equal(logits[0], logits[1]), "the logits do not depend on the image"
        assert torch.equal(model.logits(images), logits), "the same images have other logits the second time"
        for what, ask, whole in (("logits", model.logits, logits), ("features", model.features, features)):
            alone = ask(images[1:2])
            assert torch.allclose(alone, whole[1:2], rtol=1e-4, atol=1e-5), f"{what} of an image depend on the batch"

    def test_logits_in_half_precision(self) -> None:
        """What a loss is computed from is float32, whatever the network is in."""
        self.loaded_with(Capability.CLASSIFY)
        half = self.load("bf16")
        logits = half.logits(noise(half, 2))
        assert logits.dtype == torch.float32, f"logits of a network in bf16 are {logits.dtype}"
        assert bool(logits.isfinite().all()), "a logit of a network in bf16 is not finite"

    def test_features_go_into_the_head(self) -> None:
        """Features lie inside the network: weights before them change them, and weights behind them do not."""
        model = self.loaded_with(Capability.CLASSIFY)
        images = noise(model, 3)
        logits, features = model.logits(images), model.features(images)
        behind = before = False
        for parameter in reversed(list(model.network.parameters())):
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(0.5)
                same = torch.equal(model.features(images), features)
                behind = behind or (same and not torch.equal(model.logits(images), logits))
                before = before or not same
                parameter.copy_(kept)
            if behind and before:
                return
        assert behind, "no weight lies behind the features: they are not what goes into the head"
        assert before, "no weight changes the features: they are not of this network"

    def test_labels_are_places_among_the_classes(self, tmp_path: Path) -> None:
        """The label of a row is the place of its class; the names of the classes are distinct."""
        model = self.loaded_with(Capability.CLASSIFY)
        assert len(set(model.classes)) == len(model.classes) > 1, "classes are at least two distinct names"
        labels = model.labels(self.batch(model, tmp_path))
        assert labels.dtype == torch.int64, f"labels are {labels.dtype}"
        wanted = [place % len(model.classes) for place in range(3)]
        assert labels.tolist() == wanted, f"labels are {labels.tolist()}, where the classes have places {wanted}"

    def test_images_are_those_of_the_data(self, tmp_path: Path) -> None:
        """A classifier hands out the pixels that the data gave, float32 in [-1, 1], those of whole levels too."""
        model = self.loaded_with(Capability.CLASSIFY)
        given = noise(model, 3)
        levels = ((given + 1) * 127.5).round() / 127.5 - 1
        run = toy_run(tmp_path)
        for pixels in (given, levels):
            table = attrs.evolve(self.examples(model), load=partial(row_of, pixels))
            batch = Batch(model.prepare(table, run), (2, 0), 0, (0, 1), run, torch.device("cpu"))
            images = model.images(batch)
            assert images.dtype == torch.float32, f"images are {images.dtype}"
            assert torch.equal(images, pixels[[2, 0]]), "the images are not those that the data gave"

    def test_images_that_reload_are_drawn_anew(self, tmp_path: Path) -> None:
        """Where the pixels change at every step, they are those of the step; else they are read once."""
        model = self.loaded_with(Capability.CLASSIFY)
        size = model.facts.resolution
        usual = attrs.evolve(
            self.examples(model), load=lambda row, draws: torch.rand(3, size, size, generator=draws) * 2 - 1
        )
        run = toy_run(tmp_path)
        for reload in (False, True):
            table = model.prepare(attrs.evolve(usual, reload=reload), run)
            steps = [model.images(Batch(table, (0,), step, (0,), run, torch.device("cpu"))) for step in (0, 0, 1)]
            assert torch.equal(steps[0], steps[1]), "the same step has other images the second time"
            assert torch.equal(steps[0], steps[2]) != reload, (
                "images that change at every step were kept" if reload else "images were not kept"
            )

    def test_gradients_reach_the_classifier(self) -> None:
        """What is trained sits in the network, so gradients must arrive there."""
        model = self.loaded_with(Capability.CLASSIFY)
        weight = next(p for p in model.network.parameters() if p.dim() > 1)
        weight.requires_grad_(True)
        model.logits(noise(model, 2)).square().mean().backward()
        assert weight.grad is not None, "no gradient reaches the network"
        assert bool(weight.grad.any()), "the gradient of the network is zero"

    def test_the_head_reads_the_features(self) -> None:
        """A classifier that names its head hands the features to the module of that name."""
        model = self.loaded_with(Capability.CLASSIFY)
        name: str = getattr(model, "head", "")
        if not name:
            pytest.skip("the model names no head")
        read: list[torch.Tensor] = []
        head = model.network.get_submodule(name)
        handle = head.register_forward_pre_hook(lambda _module, inputs: read.extend(inputs[:1]))
        model.logits(noise(model, 2))
        handle.remove()
        assert len(read) == 1, f"the head {name!r} is called {len(read)} times for an image"
        same = torch.equal(read[0].flatten(1).float(), model.features(noise(model, 2)))
        assert same, f"what goes into {name!r} are not the features"

    def test_blocks_are_in_the_network(self) -> None:
        """The weights of every block are there once; its feed-forward network widens, then narrows to what it was."""
        model = self.loaded_with(Capability.BLOCKS)
        blocks = model.blocks()
        weights = dict(model.network.named_parameters())
        modules = {name for name, _ in model.network.named_modules()}
        assert blocks, "no block, where the facts name the capability"
        assert len({block.name for block in blocks}) == len(blocks), "two blocks have one name"
        named = [name for block in blocks for name in (*block.ffn, *block.attention)]
        assert len(set(named)) == len(named), "a weight is named twice"
        assert blocks == model.blocks(), "asked twice, the blocks differ"
        for block in blocks:
            inside = [name for name in (*block.ffn, *block.attention) if not name.startswith(f"{block.name}.")]
            assert block.name in modules, f"the network has no module {block.name!r}"
            assert not inside, f"{inside} lie outside of the block {block.name!r}"
            missing = [name for name in (*block.ffn, *block.attention) if name not in weights]
            assert not missing, f"the network has no weights {missing}"
            (m, d), second = weights[block.ffn[0]].shape, tuple(weights[block.ffn[1]].shape)
            assert m > d, f"the feed-forward network of {block.name!r} is {m} wide between {d}"
            assert second == (d, m), f"the weights of {block.name!r} are {(m, d)} and {second}, not (m, d) and (d, m)"

    def test_blocks_are_in_the_order_of_the_network(self) -> None:
        """From the input to the output: a changed block changes what the next ones read, and none before it."""
        model = self.loaded_with(Capability.BLOCKS)
        images, read = noise(model, 1), dict[str, torch.Tensor]()
        modules = {block.name: model.network.get_submodule(block.name) for block in model.blocks()}
        handles = [
            module.register_forward_pre_hook(lambda _module, inputs, name=name: read.update({name: inputs[0].clone()}))
            for name, module in modules.items()
        ]
        model.logits(images)
        order = list(read)
        for handle in handles:
            handle.remove()
        assert order == [block.name for block in model.blocks()], f"the blocks are computed in the order {order}"

    def test_fresh_tensors_follow_their_seed(self) -> None:
        """Equal seeds give equal tensors, others give others; each fits its place, and the model stays as it is."""
        model = self.loaded_with(Capability.FRESH)
        before = Snapshot.of(model.network)
        with nothing_global_changes():
            first, again, other = model.fresh(0), model.fresh(0), model.fresh(1)
        assert not before.differences(model.network), before.differences(model.network)
        assert tensor_digest(first) == tensor_digest(again), "one seed gave two networks"
        assert tensor_digest(first) != tensor_digest(other), "two seeds gave one network"
        stored = model.network.state_dict()
        assert first.keys() <= stored.keys(), f"not in the network: {sorted(first.keys() - stored.keys())[:3]}"
        lacking = {name for name, _ in model.network.named_parameters()} - first.keys()
        assert not lacking, f"no fresh tensor for {sorted(lacking)[:3]}"
        for name, tensor in first.items():
            there = stored[name]
            assert tensor.shape == there.shape, f"{name} is {tuple(tensor.shape)}, not {tuple(there.shape)}"
            assert tensor.dtype == there.dtype, f"{name} is {tensor.dtype}, not {there.dtype}"
            assert tensor.device == there.device, f"{name} is on {tensor.device}, not on {there.device}"
            assert not tensor.requires_grad, f"{name} requires a gradient"
        taken = {tensor.data_ptr() for tensor in stored.values()} & {tensor.data_ptr() for tensor in first.values()}
        assert not taken, "fresh tensors share memory with the model"


def row_of(pixels: torch.Tensor, row: int, generator: torch.Generator) -> torch.Tensor:
    """Return one image; nothing is drawn."""
    return pixels[row]


def noise(model: Any, count: int) -> torch.Tensor:
    """Return images of noise in the resolution of the model, float32 ``(count, 3, H, W)`` in [-1, 1]."""
    size = model.facts.resolution
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
