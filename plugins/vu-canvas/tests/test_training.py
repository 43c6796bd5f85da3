"""The training program: resumes exactly, refuses other settings, counts right answers correctly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from vu_canvas.render import OBJECTS, STYLES
from vu_canvas.train import main
from vu_canvas.training import diffusion, vae
from vu_canvas.training.check import TARGETS, Accuracy, share, table, wilson
from vu_canvas.training.data import draw, to_signed, to_unit
from vu_canvas.training.loop import Schedule, Trainer, averaged_weights
from vu_canvas.training.tokenizer import WORDS, build_tokenizer, vocabulary


def train(folder: Path, steps: int, stop: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    schedule = Schedule(steps=steps, learning_rate=0.1, warmup=2, average=0.9, seed=seed, save_every=1)
    trainer = Trainer(model, schedule, folder, "toy", lambda line: None)
    trainer.resume()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, str]:
        if step == stop:
            raise KeyboardInterrupt
        return (model(torch.randn(4, 3, generator=generator)) - 1).square().mean(), ""

    trainer.run(loss)
    return {**model.state_dict(), **{f"average.{k}": v for k, v in trainer.average.items()}}


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 9)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", 9, stop=4)
    assert json.loads((tmp_path / "parts" / "toy.json").read_text(encoding="utf-8"))["step"] == 4
    parts = train(tmp_path / "parts", 9)
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


def test_seed_changes_the_result(tmp_path: Path) -> None:
    one, other = train(tmp_path / "one", 3), train(tmp_path / "other", 3, seed=1)
    assert not torch.equal(one["weight"], other["weight"])


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    train(tmp_path, 3)
    with pytest.raises(ValueError, match="made with other settings"):
        train(tmp_path, 4)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    train(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.json", "toy.safetensors"]


def test_averaged_weights_are_the_average(tmp_path: Path) -> None:
    state = train(tmp_path, 6)
    stored = averaged_weights(tmp_path, "toy")
    assert torch.equal(stored["weight"], state["average.weight"])
    assert not torch.equal(stored["weight"], state["weight"])


def test_missing_stage_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m vu_canvas\.train vae"):
        averaged_weights(tmp_path, "vae")


def test_rate_warms_up_and_falls() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9])
    assert rates[99] < 0.02


def test_draw_orders_and_labels() -> None:
    renders = draw("validation", 2)
    assert renders.images.shape == (200, 64, 64, 3)
    assert renders.objects[:12].tolist() == [0] * 10 + [1] * 2
    assert renders.styles[:12].tolist() == [*range(10), 0, 1]
    assert torch.equal(draw("validation", 1, first=1).images, renders.images[100:])


def test_draw_refuses_more_than_the_split_has() -> None:
    with pytest.raises(ValueError, match="has no 2 indices"):
        draw("train", 2, first=999_999)


def test_ranges() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 64, 64, 1)[..., [0, 1, 1]]
    assert to_unit(images).shape == (1, 3, 64, 64)
    assert to_signed(images).aminmax() == (-1, 1)


def test_standardised_autoencoder_reconstructs_the_same() -> None:
    torch.manual_seed(0)
    model = vae.build().eval()
    images = draw("validation", 1).images[:8]
    with torch.no_grad():
        before = model.decode(model.encode(to_signed(images)).latent_dist.mode()).sample
        vae.standardise(model, vae.encode(model, images))
        after = model.decode(model.encode(to_signed(images)).latent_dist.mode()).sample
        mean, logvar = vae.encode(model, images).chunk(2, dim=1)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    spread = mean.var(dim=(0, 2, 3), correction=0) + logvar.exp().mean(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(4), rtol=1e-4, atol=1e-4)


def test_second_phase_begins_where_the_first_ended() -> None:
    torch.manual_seed(0)
    first = diffusion.TextToImage(diffusion.UNET_AT_FIRST).eval()
    second = diffusion.TextToImage(diffusion.UNET).eval()
    diffusion.grow(second, first.state_dict())
    latents, steps, tokens = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), diffusion.captions()[[3, 100]]
    with torch.no_grad():
        torch.testing.assert_close(first(latents, steps, tokens), second(latents, steps, tokens), rtol=1e-4, atol=1e-5)


def test_growing_refuses_another_architecture() -> None:
    model = diffusion.TextToImage(diffusion.UNET)
    with pytest.raises(ValueError, match="another architecture"):
        diffusion.grow(model, {"stranger": torch.zeros(1)})


@pytest.mark.parametrize("timesteps", [diffusion.even_timesteps, diffusion.middle_timesteps])
def test_timesteps_are_positions(timesteps: Callable[[torch.Generator], torch.Tensor]) -> None:
    t = timesteps(torch.Generator().manual_seed(0))
    assert t.shape == (diffusion.BATCH,)
    assert t.min() >= 0
    assert t.max() < 1


def test_captions_are_in_the_order_of_the_labels() -> None:
    tokens = diffusion.captions()
    tokenizer = build_tokenizer()
    assert tokens.shape == (101, 16)
    assert tokenizer.decode(tokens[37], skip_special_tokens=True) == "a star image in pixel style ."
    assert tokenizer.decode(tokens[100], skip_special_tokens=True) == ""


def test_words_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for word in (*WORDS, "."):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    vocab, _ = vocabulary()
    assert sorted(vocab.values()) == list(range(len(vocab)))


def test_wilson() -> None:
    low, high = wilson(95, 100)
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1)


def accuracy(**wrong: int) -> Accuracy:
    keys = [f"object:{word}" for word in OBJECTS] + [f"style:{word}" for word in STYLES]
    return Accuracy("generated", {key: 100 - wrong.get(key[-4:], 0) for key in keys}, dict.fromkeys(keys, 100))


def test_targets() -> None:
    assert accuracy().misses() == []
    assert accuracy(star=11).misses() == ["generated: object:star 89.00% is below 90%"]
    assert accuracy(star=10).misses() == []
    assert TARGETS["renders"].head == 0.998


def test_table_has_every_class() -> None:
    lines = table([accuracy(star=10)]).splitlines()
    assert len(lines) == 2 + 2 + 20
    assert "| object:star | 90.0 % (82.6 to 94.5) |" in lines
    assert share(1, 2) == "50.0 % (9.5 to 90.5)"


def test_check_refuses_a_crooked_number(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["--checkpoints", str(tmp_path), "check", "--images", "150"])
    assert answer.exit_code == 2
    assert "multiple of 100" in answer.output
