"""The loaded model: what objectives are written in, against diffusers' own formulas and images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vu_core import Batch, Denoiser, Edit, Event, Examples, LowRank, Model, ModelError, Run, TextToImage
from vu_core.adapters import Lora, LoraConfig, apply_edit
from vu_diffusers.model import Config, Diffusers
from vu_diffusers.stable_diffusion import StableDiffusion
from vu_diffusers.tiny import tiny_model

Pipelines = dict[tuple[str, str | None], Path]


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return tiny_model(prediction=request.param)


def table(count: int = 5, *, side: str = "forget", reload: bool = False) -> Examples:
    """Images that depend on the row and, a little, on the generator they are handed."""

    def load(row: int, generator: torch.Generator) -> Tensor:
        base = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(row)) * 2 - 1
        return base + 0.01 * torch.randn(3, 32, 32, generator=generator)

    return Examples(side, tuple(f"image {i}" for i in range(count)), load=load, reload=reload)  # type: ignore[arg-type]


def batch_of(examples: Examples, run: Run, step: int = 0) -> Batch:
    return Batch(examples, (0, 2, 1), step, (0, 1, 2), run, torch.device("cpu"))


def test_it_is_what_the_contracts_ask_for(model: StableDiffusion) -> None:
    for contract in (Model, Denoiser, TextToImage):
        assert isinstance(model, contract)
    assert sorted(dict(model.network.named_children())) == ["text_encoder", "unet", "vae"]
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not any(m.training for m in model.network.modules())


def test_noise_and_target_as_in_diffusers(model: StableDiffusion) -> None:
    from diffusers import DDPMScheduler

    own = DDPMScheduler.from_config(model.scheduler.config)
    z, n = torch.randn(2, 3, 4, 8, 8)
    t = torch.tensor([0, 500, 999])
    assert torch.allclose(model.add_noise(z, n, t), own.add_noise(z, n, t), atol=1e-6)
    wanted = n if model.prediction == "epsilon" else own.get_velocity(z, n, t)
    assert torch.allclose(model.target(z, n, t), wanted, atol=1e-6)


def test_prediction_is_float32_in_every_precision(pipelines: Pipelines) -> None:
    results = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = Diffusers(str(pipelines["epsilon", None]), Config()).load(precision=precision)
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        results[precision] = model.predict(z, torch.tensor([10, 900]), model.embed(["a", "b"]))
        assert results[precision].dtype == torch.float32
        assert model.network["vae"].dtype == model.dtype
    assert torch.allclose(results["fp32"], results["bf16"], atol=0.05)
    assert torch.allclose(results["fp32"], results["fp16"], atol=0.01)
    assert not torch.equal(results["fp32"], results["bf16"])


def test_images_are_encoded_once(model: StableDiffusion, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = model.network["vae"]
    calls = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x, **k: calls.append(len(x)) or encode(x, **k))
    events: list[Any] = []
    run.emit_event = events.append
    prepared = model.prepare(table(), run)
    assert calls == [5]
    assert [event.values["step"] for event in events] == [5]
    assert prepared.tensors["latent_mean"].shape == (5, 4, 8, 8)
    first = model.latents(batch_of(prepared, run))
    assert first.shape == (3, 4, 8, 8)
    assert torch.equal(first, model.latents(batch_of(prepared, run)))
    assert not torch.equal(first, model.latents(batch_of(prepared, run, step=1)))  # the posterior is drawn anew
    assert model.prepare(prepared, run) is prepared
    assert calls == [5]


def test_latents_are_the_scaled_posterior(model: StableDiffusion, run: Run) -> None:
    examples = table()
    prepared = model.prepare(examples, run)
    batch = batch_of(prepared, run)
    load = examples.load
    assert load is not None
    pixels = torch.stack([load(row, run.generator("pixels", "forget", row)) for row in batch.rows])
    posterior = model.network["vae"].encode(pixels).latent_dist
    noise = batch.normal("posterior", (4, 8, 8))
    wanted = (posterior.mean + posterior.std * noise) * model.network["vae"].config.scaling_factor
    assert torch.allclose(model.latents(batch), wanted, atol=1e-5)


def test_chunks_of_the_encoder_change_nothing(
    model: StableDiffusion, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.prepare(table(), run)
    monkeypatch.setattr("vu_diffusers.stable_diffusion.PIXELS_AT_ONCE", 2 * 32 * 32)
    chunked = model.prepare(table(), run)
    for column in ("latent_mean", "latent_std"):
        assert torch.allclose(whole.tensors[column], chunked.tensors[column], atol=1e-5)


def test_images_that_change_at_every_step(model: StableDiffusion, run: Run) -> None:
    examples = table(reload=True)
    assert model.prepare(examples, run) is examples
    first, again, later = (model.latents(batch_of(examples, run, step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_tables_without_images(model: StableDiffusion, run: Run) -> None:
    bare = Examples("retain", ("a", "b", "c"))
    assert model.prepare(bare, run) is bare
    with pytest.raises(ModelError, match="no images"):
        model.latents(batch_of(bare, run))
    empty = Examples("retain", (), load=lambda row, generator: torch.zeros(3, 32, 32))
    assert model.prepare(empty, run) is empty


def test_numbers_that_are_not_finite(model: StableDiffusion, run: Run) -> None:
    broken = Examples("forget", ("a",), load=lambda row, generator: torch.full((3, 32, 32), float("inf")))
    with pytest.raises(ModelError) as caught:
        model.prepare(broken, run)
    assert caught.value.code == "VU-M079"
    model.network["vae"].decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError) as caught:
        model.generate(["a"], [0], steps=1, guidance=1.0)
    assert caught.value.code == "VU-M079"


def test_embeddings_are_those_of_the_text_encoder(model: StableDiffusion) -> None:
    ids = model.tokenizer(["a cat", ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    wanted = model.network["text_encoder"](ids)[0]
    assert torch.allclose(model.embed(["a cat", ""]), wanted, atol=1e-5)


def test_an_embedding_depends_on_its_caption_alone(model: StableDiffusion) -> None:
    together = model.embed(["a cat", "a dog", "a cat"])
    alone = tiny_model(prediction=model.prediction).embed(["a cat"])
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[0], together[2])


def test_embeddings_are_kept_until_the_text_encoder_changes(
    model: StableDiffusion, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    tokens = model._tokens
    monkeypatch.setattr(model, "_tokens", lambda captions: calls.append(list(captions)) or tokens(captions))
    before = model.embed(["a cat", "a dog"])
    model.embed(["a dog", "a cat"])
    assert calls == [["a cat"], ["a dog"]]
    name = next(n for n, _ in model.network.named_parameters() if n.startswith("text_encoder") and "q_proj.weight" in n)
    edit = Edit({name: LowRank(torch.ones(1, 32), torch.ones(32, 1), 1.0)})
    with apply_edit(model.network, edit):
        changed = model.embed(["a cat", "a dog"])
        assert not torch.allclose(changed, before)
    assert torch.equal(model.embed(["a cat", "a dog"]), before)
    assert len(calls) == 3  # once under the edit, and nothing of it is kept
    theta = Lora(LoraConfig(targets=("text_encoder.q_proj",))).attach(model, run)
    assert model.embed(["a cat"]).requires_grad
    theta.detach()
    assert torch.equal(model.embed(["a cat"]), before[:1])
    model.network["text_encoder"].requires_grad_(True)
    assert model.embed(["a cat"]).requires_grad


def test_long_captions_are_cut_with_a_warning(model: StableDiffusion) -> None:
    with pytest.warns(UserWarning, match="cut to 77"):
        assert model.embed(["word " * 100]).shape == (1, 77, 32)


def test_cut_captions_are_told_before_anything_is_trained(model: StableDiffusion, tmp_path: Path) -> None:
    events: list[Event] = []
    run = Run(seed=0, device="cpu", precision="fp32", folder=tmp_path, cache=tmp_path, emit_event=events.append)
    long = "word " * 100
    fine = Examples(side="retain", captions=("a", "b"))
    model.prepare(fine, run)
    assert events == []
    model.prepare(Examples(side="forget", captions=(long, "a", long), overwrites=("b", "c", long)), run)
    (warning,) = events
    model.prepare(Examples(side="forget", captions=(long, "a", long), overwrites=("b", "c", long)), run)
    assert events == [warning], "metrics prepare the same captions again"
    assert warning.type == "warning"
    assert "3 of 6 captions of the forget examples" in warning.values["text"]
    assert "77 tokens" in warning.values["text"]
    assert repr(long) in warning.values["text"]


def plain_images(folder: Path, prompts: list[str], seeds: list[int], guidance: float) -> np.ndarray[Any, Any]:
    """What the pipeline of diffusers draws, without any of our code."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = pipeline(
        prompts, generator=generators, num_inference_steps=4, guidance_scale=guidance, output_type="np"
    ).images
    return (found * 255).round().astype(np.uint8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_images_are_those_of_diffusers(pipelines: Pipelines, prediction: str, guidance: float) -> None:
    folder = pipelines[prediction, None]
    prompts, seeds = ["a cat", "a dog", "a cat"], [3, 4, 5]
    ours = Diffusers(str(folder), Config()).load().generate(prompts, seeds, steps=4, guidance=guidance)
    theirs = plain_images(folder, prompts, seeds, guidance)
    assert ours.shape == (3, 32, 32, 3)
    assert ours.dtype == np.uint8
    assert ours.std() > 5
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    "scheduler", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"]
)
def test_the_pipelines_own_scheduler_and_no_batch(pipelines: Pipelines, tmp_path: Path, scheduler: str) -> None:
    folder = Path(shutil.copytree(pipelines["epsilon", None], tmp_path / "model"))
    file = folder / "scheduler" / "scheduler_config.json"
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k.startswith("beta") or k == "prediction_type"}
    file.write_text(json.dumps({**settings, "_class_name": scheduler, "num_train_timesteps": 1000}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", scheduler]}))
    model = Diffusers(str(folder), Config()).load()
    prompts, seeds = ["a cat", "a dog", "a cow"], [3, 4, 5]
    together = model.generate(prompts, seeds, steps=4, guidance=3.0)
    alone = [model.generate([p], [s], steps=4, guidance=3.0)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert np.abs(together.astype(int) - np.stack(alone)).max() <= 1
    assert np.abs(together.astype(int) - plain_images(folder, prompts, seeds, 3.0)).max() <= 1


def test_many_images_in_parts(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seeds = [f"image {i}" for i in range(5)], list(range(5))
    whole = model.generate(prompts, seeds, steps=3, guidance=2.0)
    monkeypatch.setattr("vu_diffusers.sampling._LATENT_PIXELS_AT_ONCE", 2 * 8 * 8)
    ticks: list[tuple[int, int]] = []
    parts = model.generate(
        prompts, seeds, steps=3, guidance=2.0, progress=lambda done, total: ticks.append((done, total))
    )
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert {total for _, total in ticks} == {9}
    assert ticks[-1] == (9, 9)
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)


def test_images_need_as_many_seeds_as_prompts(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        model.generate(["a", "b"], [1], steps=1, guidance=1.0)
    assert model.generate([], [], steps=1, guidance=1.0).shape == (0, 32, 32, 3)


def test_loading_and_drawing_write_nothing(pipelines: Pipelines) -> None:
    program = (
        "from vu_diffusers.model import Config, Diffusers\n"
        f"model = Diffusers({str(pipelines['epsilon', None])!r}, Config()).load()\n"
        "model.generate(['a cat'], [0], steps=2, guidance=2.0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert (done.stdout, done.stderr) == ("", "")


def test_gradient_checkpointing_changes_no_gradient(pipelines: Pipelines, run: Run) -> None:
    gradients = []
    for checkpointing in (False, True):
        config = Config(gradient_checkpointing=checkpointing)
        model = Diffusers(str(pipelines["epsilon", None]), config).load()
        assert model.network["unet"].is_gradient_checkpointing == checkpointing
        theta = Lora(LoraConfig()).attach(model, run)
        z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        model.predict(z, torch.tensor([100]), model.embed(["a"])).square().mean().backward()
        gradients.append(theta.parameters()[1].grad)
        theta.detach()
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_facts_of_an_assembled_model(pipelines: Pipelines) -> None:
    found = tiny_model().facts
    read = Diffusers(str(pipelines["epsilon", None]), Config()).inspect()
    assert (found.resolution, found.forward_gflops) == (read.resolution, read.forward_gflops)
    assert found.parameters == read.parameters
