"""The training program: resumes exactly, refuses other settings, counts right answers correctly."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from vu_canvas.render import OBJECTS, STYLES
from vu_canvas.train import main
from vu_canvas.training import check, diffusion, judge, vae
from vu_canvas.training.check import TARGETS, Accuracy, share, table, wilson
from vu_canvas.training.data import Renders, draw, to_signed, to_unit
from vu_canvas.training.export import WEIGHTS, write_readme
from vu_canvas.training.loop import Loss, Schedule, Trainer, TrainingError, averaged_weights, write_tensors
from vu_canvas.training.tokenizer import WORDS, build_tokenizer, vocabulary


def train(folder: Path, steps: int, stop: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    schedule = Schedule(steps=steps, learning_rate=0.1, warmup=2, average=0.9, seed=seed, save_every=1)
    trainer = Trainer(model, schedule, folder, "toy", lambda line: None)
    trainer.resume()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if step == stop:
            raise KeyboardInterrupt
        return (model(torch.randn(4, 3, generator=generator)) - 1).square().mean(), {}

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
    with pytest.raises(TrainingError, match="made with other settings"):
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
    with pytest.raises(TrainingError, match=r"python -m vu_canvas\.train vae"):
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
    with pytest.raises(TrainingError, match="another architecture"):
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


def run(*words: str | Path) -> tuple[int, str]:
    """The exit status and the output of the training program; an exception that got through fails the test."""
    answer = CliRunner().invoke(main, [str(word) for word in words])
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.output


def other_settings(folder: Path) -> None:
    torch.manual_seed(0)
    schedule = Schedule(steps=1, learning_rate=0.5)
    Trainer(judge.Judge(), schedule, folder, "judge", lambda line: None).save()


def damaged_record(folder: Path) -> None:
    (folder / "judge.json").write_text("{")


def damaged_weights(folder: Path) -> None:
    schedule = json.loads(json.dumps(vars(judge.SCHEDULE)))
    (folder / "judge.json").write_text(json.dumps({"schedule": schedule, "step": 3, "seconds": 1.0}))
    (folder / "judge.safetensors").write_bytes(b"no tensors")


def another_architecture(folder: Path) -> None:
    damaged_weights(folder)
    write_tensors(folder / "judge.safetensors", {"step": torch.tensor(3), "model.stranger": torch.zeros(1)})


def file_in_the_way(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("a file")


@pytest.mark.parametrize(
    ("command", "before", "says"),
    [
        (["diffusion"], None, "train this stage first: python -m vu_canvas.train vae"),
        (["export"], None, "train this stage first: python -m vu_canvas.train judge"),
        (["export", "diffusion"], None, "train this stage first: python -m vu_canvas.train diffusion"),
        (["check", "--target", "nowhere"], None, "there is no pipeline"),
        (["judge"], other_settings, "made with other settings"),
        (["judge"], damaged_record, "judge.json is damaged"),
        (["judge"], damaged_weights, "cannot be read"),
        (["judge"], another_architecture, "another architecture"),
        (["judge"], file_in_the_way, "is a file"),
        (["painter"], None, "No such command"),
        (["vae", "--steps", "0"], None, "0 is not in the range"),
    ],
)
def test_mistakes_end_with_one_clean_message(
    command: list[str], before: Callable[[Path], None] | None, says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    if before is not None:
        before(folder)
    command = [str(tmp_path / word) if word == "nowhere" else word for word in command]
    status, output = run("--checkpoints", folder, *command)
    assert status == 2
    assert says in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("device", "says"), [("tpu", "none of cpu, cuda"), ("cuda:x", "none of cpu, cuda"), ("cuda:99", "has no device")]
)
def test_unknown_devices(device: str, says: str, tmp_path: Path) -> None:
    status, output = run("--checkpoints", tmp_path, "--device", device, "judge")
    assert status == 2
    assert says in output


def tiny_renders(split: str, per_pair: int, first: int = 0, seed: int = 0) -> Renders:
    images = torch.randint(0, 256, (100, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Renders(images, torch.arange(100) // 10, torch.arange(100) % 10)


@pytest.mark.parametrize("stage", [vae, judge, diffusion])
def test_everything_that_a_step_computes_is_on_the_device(
    stage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run one step of every stage on torch's device without memory: an operation with a tensor left behind fails."""
    kinds: list[str] = []
    losses: list[tuple[Trainer, torch.Tensor]] = []

    @contextmanager
    def autocast(kind: str, dtype: torch.dtype) -> Iterator[None]:
        kinds.append(kind)  # autocast does not know this device
        yield

    def one_step(trainer: Trainer, loss: Loss, report_every: int = 50) -> None:
        value, parts = loss(0, torch.Generator().manual_seed(0))
        value.backward()  # type: ignore[no-untyped-call]
        losses.append((trainer, value))
        assert {part.device.type for part in parts.values()} <= {"meta"}

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(Trainer, "run", one_step)
    if stage is diffusion:
        moments = torch.randn(100, 8, 16, 16)
        monkeypatch.setattr(diffusion, "cached_moments", lambda *_: (moments, torch.arange(100), 1.0))
        monkeypatch.setattr(diffusion, "autoencoder_hash", lambda _: "0" * 16)
        monkeypatch.setattr(
            diffusion, "trained_weights", lambda *_: diffusion.TextToImage(diffusion.UNET_AT_FIRST).state_dict()
        )
    else:
        monkeypatch.setattr(stage, "draw", tiny_renders)
    stage.train(tmp_path, lambda line: None, device="meta")
    assert len(losses) == (2 if stage is diffusion else 1)
    assert set(kinds) == {"meta"}
    for trainer, value in losses:
        tensors = [value, *trainer.average.values(), *(p.grad for _, p in trainer.parameters if p.grad is not None)]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert any(p.grad is not None for _, p in trainer.parameters)


def test_a_resumed_trainer_keeps_its_tensors_on_the_device(tmp_path: Path) -> None:
    train(tmp_path, 3)
    schedule = Schedule(steps=3, learning_rate=0.1, warmup=2, average=0.9, save_every=1)
    trainer = Trainer(nn.Linear(3, 2, device="meta"), schedule, tmp_path, "toy", lambda line: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: copying to a device without memory does nothing
        trainer.resume()
    kept = [trainer.average[key] for key, _ in trainer.parameters]
    kept += [
        trainer.optimizer.state[value][word] for _, value in trainer.parameters for word in ("exp_avg", "exp_avg_sq")
    ]
    assert len(kept) == 6
    assert {tensor.device.type for tensor in kept} == {"meta"}


def write_autoencoder(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = vae.build()
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    write_tensors(folder / "vae.safetensors", tensors)


def test_latents_belong_to_one_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "draw", tiny_renders)
    monkeypatch.setattr(diffusion, "draw", tiny_renders)
    said: list[str] = []
    write_autoencoder(tmp_path, 0)
    first = diffusion.cached_moments(tmp_path, said.append)
    assert len(said) == 1
    again = diffusion.cached_moments(tmp_path, said.append)
    assert len(said) == 1  # read back
    assert torch.equal(first[0], again[0])
    write_autoencoder(tmp_path, 1)
    other = diffusion.cached_moments(tmp_path, said.append)
    assert len(said) == 2
    assert not torch.equal(first[0], other[0])
    assert len(list(tmp_path.glob("latents-*"))) == 1


def test_a_checkpoint_of_another_autoencoder_is_not_continued(tmp_path: Path) -> None:
    schedule = Schedule(steps=3, learning_rate=0.1)
    Trainer(nn.Linear(3, 2), schedule, tmp_path, "toy", lambda line: None, inputs="one").save()
    Trainer(nn.Linear(3, 2), schedule, tmp_path, "toy", lambda line: None, inputs="one").resume()
    with pytest.raises(TrainingError, match="another checkpoint of an earlier stage"):
        Trainer(nn.Linear(3, 2), schedule, tmp_path, "toy", lambda line: None, inputs="other").resume()


def test_the_shipped_page_is_what_the_program_writes(tmp_path: Path) -> None:
    """Without checkpoints the table of their settings stays as it was."""
    target = tmp_path / "weights"
    shutil.copytree(WEIGHTS, target)
    shipped = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    how, tables = shipped.split("## Measured\n\n")[1].rstrip("\n").split("\n\n")
    write_readme(tmp_path / "nothing", target, 1000, how, tables)
    assert (target / "README.md").read_text(encoding="utf-8") == shipped
    write_readme(tmp_path / "nothing", target, 300, how, tables)
    assert "python -m vu_canvas.train check --images 300 --write" in (target / "README.md").read_text(encoding="utf-8")


def test_check_writes_only_when_told_and_only_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(check, "measure", lambda *_: [accuracy()])
    shipped = (WEIGHTS / "README.md").read_bytes()
    command = ["--checkpoints", tmp_path, "check", "--images", "200", "--target", tmp_path / "weights"]
    status, output = run(*command)
    assert status == 0
    assert "| object:star |" in output
    assert (tmp_path / "weights" / "README.md").read_bytes() == shipped
    assert run(*command, "--write")[0] == 0
    page = (tmp_path / "weights" / "README.md").read_text(encoding="utf-8")
    assert "check --images 200 --write" in page
    assert "seeds 10000 to 10199" in page
    assert "| vae | 3300 |" in page
    assert (WEIGHTS / "README.md").read_bytes() == shipped
