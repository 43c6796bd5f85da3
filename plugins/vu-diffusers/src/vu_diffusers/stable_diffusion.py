"""A loaded Stable Diffusion pipeline: the frozen networks and what objectives are written in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vu_core import Batch, Examples, ModelError, ModelFacts, StoredTensor
from vu_diffusers.folder import CLASSES, describe
from vu_diffusers.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

    from vu_core import Run

PIXELS_AT_ONCE = 1 << 18
"""Of one pass through the autoencoder, whose pixels need the most memory: one image of 512 x 512, 64 of 64 x 64."""


class StableDiffusion:
    """The networks of a pipeline, frozen, with noise schedule and text embeddings.

    With ``a_t`` the cumulative product of the noise schedule, s the VAE's scaling factor and tau the text encoder:
    ``z_t = sqrt(a_t) z + sqrt(1 - a_t) n`` is the noisy latent; the denoiser predicts the noise ``n`` (epsilon) or the
    velocity ``sqrt(a_t) n - sqrt(1 - a_t) z`` (v-prediction).

    Args:
        network: ``nn.ModuleDict`` with the children ``unet``, ``text_encoder``, ``vae``.
        tokenizer: turns captions into token ids; scheduler: the pipeline's own, used for sampling.
        facts: what `inspect` told.
    """

    denoiser = "unet"

    def __init__(self, network: nn.ModuleDict, tokenizer: Any, scheduler: Any, facts: ModelFacts) -> None:
        self.network = network.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.facts = facts
        parameter = next(network["unet"].parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.timesteps = int(scheduler.config.num_train_timesteps)
        self.prediction = str(scheduler.config.prediction_type)
        self.scale = float(network["vae"].config.scaling_factor)
        self._alphas = scheduler.alphas_cumprod.detach().to(self.device, torch.float32).clone()  # (T,)
        self._pristine = _state(network["text_encoder"])
        self._embedded: dict[str, Tensor] = {}
        self._warned: set[tuple[str, tuple[str, ...]]] = set()

    @classmethod
    def assemble(
        cls,
        *,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        facts: ModelFacts | None = None,
    ) -> StableDiffusion:
        """Build the model from components that are in memory already; nothing is copied.

        Args:
            unet: UNet2DConditionModel.
            vae: AutoencoderKL.
            text_encoder: CLIPTextModel.
            tokenizer: CLIPTokenizer.
            scheduler: any scheduler of diffusers with ``alphas_cumprod``.
            facts: computed from the components when absent.
        """
        network = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder, "vae": vae})
        return cls(network, tokenizer, scheduler, facts or _facts(network, scheduler))

    def prepare(self, examples: Examples, run: Run) -> Examples:
        """Return the table with the columns ``latent_mean`` and ``latent_std``, ``(N, C, h, w)`` float32 on the CPU.

        Images are encoded once; crop and flip draw once per image. Tables without images, tables that are
        encoded already, and those whose images change at every step (``reload``) come back as they are. Captions that
        are too long for the text encoder are told as an event ``warning``.

        Raises:
            ModelError: VU-M079 when the VAE gives numbers that are not finite.
        """
        if "latent_mean" in examples.tensors:
            return examples
        self._warn_of_cut_captions(examples, run)
        if examples.load is None or examples.reload or not len(examples):
            return examples
        means: list[Tensor] = []
        stds: list[Tensor] = []
        waiting: list[Tensor] = []
        for row in range(len(examples)):
            waiting.append(examples.load(row, run.generator("pixels", examples.side, row)))
            if row == len(examples) - 1 or len(waiting) * waiting[0][0].numel() >= PIXELS_AT_ONCE:
                mean, std = self._moments(torch.stack(waiting))
                means.append(mean.cpu())
                stds.append(std.cpu())
                waiting = []
                run.progress("encoding images", row + 1, len(examples))
        return examples.with_tensors(latent_mean=torch.cat(means), latent_std=torch.cat(stds))

    def latents(self, batch: Batch) -> Tensor:
        """Return ``z = s (mean + std * n)``, ``(B, C, h, w)`` float32; n is drawn from the batch as ``posterior``."""
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"], batch["latent_std"]
        else:
            load = batch.examples.load
            if load is None:
                raise ModelError("VU-M079", "These examples have no images.", "Use data with images.", where=batch.side)
            pixels = [load(row, g) for row, g in zip(batch.rows, batch.generators("pixels"), strict=True)]
            mean, std = self._moments(torch.stack(pixels))
        return self.scale * (mean + std * batch.normal("posterior", mean.shape[1:]))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``z_t``, ``(B, C, h, w)``; ``timesteps`` are int64 ``(B,)`` in 0 .. T - 1."""
        signal, sigma = self._rates(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser was trained to predict: the noise, or the velocity, ``(B, C, h, w)``."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._rates(timesteps)
        return signal * noise - sigma * latents

    def predict(self, noisy: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        """Return the prediction of the denoiser in float32, ``(B, C, h, w)``; ``embedding`` is ``(B, L, D)``."""
        unet = self.network["unet"]
        out = unet(noisy.to(self.dtype), timesteps, embedding.to(self.dtype), return_dict=False)[0]
        return out.float()  # type: ignore[no-any-return]

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return tau(c), ``(B, L, D)``, in the precision of the text encoder.

        Each caption is encoded by itself, so that its embedding depends on nothing else. While the text encoder is as
        it was loaded, the result is kept; when it is trained or edited, nothing is kept and gradients flow.
        """
        encoder = self.network["text_encoder"]
        if not _same(self._pristine, _state(encoder)):
            distinct = list(dict.fromkeys(captions))
            rows = {caption: row for row, caption in enumerate(distinct)}
            return encoder(self._tokens(distinct))[0][[rows[caption] for caption in captions]]  # type: ignore[no-any-return]
        for caption in captions:
            if caption not in self._embedded:
                with torch.no_grad():
                    self._embedded[caption] = encoder(self._tokens([caption]))[0][0]  # (L, D)
        return torch.stack([self._embedded[caption] for caption in captions])

    def tokens(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the token ids of each caption, start and end token included, cut to the L rows of `embed`."""
        with quiet():
            ids = self.tokenizer(list(captions), truncation=True, max_length=self._longest)["input_ids"]
        return [tuple(each) for each in ids]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)`` at the native resolution."""
        size = self.facts.resolution // 2 ** (len(self.network["vae"].config.block_out_channels) - 1)
        return int(self.network["unet"].config.in_channels), size, size

    def sampling_timesteps(self, steps: int) -> tuple[int, ...]:
        """Return the training timesteps of ``steps`` sampling steps, see `vu_diffusers.sampling.sampling_timesteps`."""
        from vu_diffusers.sampling import sampling_timesteps

        return sampling_timesteps(self, steps)

    def denoise_partly(
        self, captions: Sequence[str], noise: Tensor, *, steps: int, done: Sequence[int], guidance: float
    ) -> Tensor:
        """Return latents on the way to an image, ``(B, C, h, w)``; see `vu_diffusers.sampling.sample_partly`."""
        from vu_diffusers.sampling import sample_partly

        return sample_partly(self, captions, noise, steps=steps, done=done, guidance=guidance)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray[Any, Any]:
        """Return images, uint8 ``(N, H, W, 3)``; see `vu_diffusers.sampling.sample`.

        Args:
            prompts: one per image.
            seeds: one per image.
            steps: sampling steps.
            guidance: scale w of classifier-free guidance, ``u + w (c - u)``; 1 = off.
            progress: called with (passes done, passes in all).
        """
        from vu_diffusers.sampling import sample

        return sample(self, prompts, seeds, steps=steps, guidance=guidance, progress=progress)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images ``(B, 3, H, W)`` float32 in [-1, 1] of latents that carry the scaling factor."""
        vae = self.network["vae"]
        return vae.decode((latents / self.scale).to(_dtype(vae)), return_dict=False)[0].float()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's posterior, float32 ``(B, C, h, w)``."""
        vae = self.network["vae"]
        posterior = vae.encode(pixels.to(self.device, _dtype(vae)), return_dict=False)[0]
        mean, std = posterior.mean.float(), posterior.std.float()
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise not_finite("latents", self.dtype)
        return mean, std

    def _rates(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self._alphas[timesteps.to(self.device)].reshape(-1, 1, 1, 1)  # (B, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def _warn_of_cut_captions(self, examples: Examples, run: Run) -> None:
        captions = [*(examples.captions or ()), *(examples.overwrites or ())]
        distinct = list(dict.fromkeys(captions))
        if not distinct:
            return
        longest = self._longest
        lengths = {caption: len(t) for caption, t in zip(distinct, self._ids(distinct), strict=True)}
        cut = [caption for caption in captions if lengths[caption] > longest]
        told = (examples.side, tuple(cut))
        if cut and told not in self._warned:  # metrics prepare the same captions again
            self._warned.add(told)
            run.emit(
                "warning",
                text=f"{len(cut)} of {len(captions)} captions of the {examples.side} examples are longer than the"
                f" {longest} tokens that the model reads, and are cut there; one of {lengths[cut[0]]}: {cut[0]!r}.",
            )

    @property
    def _longest(self) -> int:
        return int(self.network["text_encoder"].config.max_position_embeddings)

    def _ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of whole captions; transformers' own remark on long ones says less than ours."""
        with quiet():
            return self.tokenizer(list(captions))["input_ids"]  # type: ignore[no-any-return]

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        longest = self._longest
        ids = self.tokenizer(
            list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        for caption, tokens in zip(captions, self._ids(captions), strict=True):
            if len(tokens) > longest:
                warnings.warn(f"caption of {len(tokens)} tokens cut to {longest}: {caption!r}", stacklevel=3)
        return ids.input_ids.to(self.device)  # type: ignore[no-any-return]


def not_finite(what: str, dtype: torch.dtype) -> ModelError:
    """Return the error for numbers that are not finite."""
    return ModelError(
        "VU-M079",
        f"The model gives {what} that are not finite in {dtype}.",
        'Set run.precision = "fp32" or "bf16".',
        where="run.precision",
    )


_State = tuple[tuple[Any, int, int], ...]


def _state(network: nn.Module) -> _State:
    """Return modules and tensors of a network as they are now; the objects are held, so that no address is reused."""
    modules = tuple((module, 0, 0) for module in network.modules())
    tensors = (*network.parameters(), *network.buffers())
    return modules + tuple((t, t.data_ptr(), -1 if t.requires_grad else t._version) for t in tensors)


def _same(before: _State, now: _State) -> bool:
    return len(before) == len(now) and all(
        a is b and place == there and version == other
        for (a, place, version), (b, there, other) in zip(before, now, strict=True)
    )


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _facts(network: nn.ModuleDict, scheduler: Any) -> ModelFacts:
    configs: dict[str, Mapping[str, Any]] = {
        "unet": dict(network["unet"].config),
        "text_encoder": network["text_encoder"].config.to_dict(),
        "vae": dict(network["vae"].config),
        "scheduler": dict(scheduler.config),
    }
    tensors = {
        part: tuple(StoredTensor(name, str(t.dtype), tuple(t.shape)) for name, t in network[part].state_dict().items())
        for part in CLASSES
    }
    return describe("diffusers", "", "assembled", configs, tensors, {"steps": 50.0, "guidance": 7.5})
