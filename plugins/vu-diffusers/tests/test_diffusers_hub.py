"""Hub ids without a network: the local cache is used, and what must be fetched is told before."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vu_core import ModelError, stored_tensors
from vu_diffusers.hub import Remote
from vu_diffusers.model import Config, Diffusers

Pipelines = dict[tuple[str, str | None], Path]
REPO = "someone/tiny-model"
COMMIT = "a" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a network that fails at the first touch."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    return cache


def _no_network(*_: object, **__: object) -> Any:
    raise OSError("no network in this test")


def _fill(cache: Path, source: Path) -> Path:
    """Lay a pipeline into the cache as the hub client does."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(source, repo / "snapshots" / COMMIT))


def _error(config: Config | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        Diffusers(REPO, config or Config()).inspect()
    return caught.value


def test_without_network_and_cache(hub_cache: Path) -> None:
    error = _error()
    assert error.code == "VU-M075"
    assert REPO in error.problem
    assert "local folder" in error.remedy
    assert _error(Config(local_files_only=True)).code == "VU-M075"


def test_cached_model_needs_no_network(hub_cache: Path, pipelines: Pipelines) -> None:
    _fill(hub_cache, pipelines["epsilon", None])
    model = Diffusers(REPO, Config(local_files_only=True))
    facts = model.inspect()
    assert facts.downloads == 0
    assert facts.ref == REPO
    assert facts.base_hash == Diffusers(str(pipelines["epsilon", None]), Config()).inspect().base_hash
    assert model.load().facts == facts


def test_half_cached_model_without_network(hub_cache: Path, pipelines: Pipelines) -> None:
    shutil.rmtree(_fill(hub_cache, pipelines["epsilon", None]) / "vae")
    assert _error().code == "VU-M075"
    assert _error(Config(local_files_only=True)).code == "VU-M075"


def test_a_folder_of_that_name_wins(
    hub_cache: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pipelines["epsilon", None], tmp_path / REPO)
    assert Diffusers(REPO, Config()).inspect().parameters > 0


class FakeHub:
    """Answers as the hub would for a repository that lies in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool = False, timeout: float) -> Any:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        siblings = [
            SimpleNamespace(rfilename=f.relative_to(self.root).as_posix(), size=f.stat().st_size, blob_id=f.name)
            for f in files
        ]
        return SimpleNamespace(siblings=siblings, sha=COMMIT, card_data=SimpleNamespace(license="mit"))

    def parse_safetensors_file_metadata(self, repo: str, name: str, *, revision: str | None) -> Any:
        tensors = stored_tensors(self.root / name)
        return SimpleNamespace(tensors={t.name: SimpleNamespace(dtype=t.dtype, shape=t.shape) for t in tensors})


def _answering(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(root))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name, revision: str(root / name))


def test_what_must_be_fetched_is_told(
    hub_cache: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(pipelines["v_prediction", None], tmp_path / "remote"))
    needed = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    (root / "v1-5-pruned.ckpt").write_bytes(b"0" * 10_000_000)  # what a repository has besides
    (root / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"0" * 1_000_000)
    (root / "safety_checker").mkdir()
    (root / "safety_checker" / "model.safetensors").write_bytes(b"0" * 1_000_000)
    _answering(monkeypatch, root)
    facts = Diffusers(REPO, Config()).inspect()
    assert facts.downloads == needed
    assert facts.base_hash.startswith("hub:")
    assert facts.licence == "mit"
    assert facts.prediction == "v_prediction"
    local = Diffusers(str(pipelines["v_prediction", None]), Config()).inspect()
    assert (facts.parameters, facts.forward_gflops) == (local.parameters, local.forward_gflops)


def test_load_fetches_only_what_is_needed(
    hub_cache: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(pipelines["epsilon", None], tmp_path / "remote"))
    (root / "v1-5-pruned.ckpt").write_bytes(b"0")
    _answering(monkeypatch, root)
    asked: list[list[str]] = []

    def snapshot(repo: str, *, revision: str | None, local_files_only: bool = False, allow_patterns: Any = None) -> str:
        if local_files_only:
            from huggingface_hub.errors import LocalEntryNotFoundError

            raise LocalEntryNotFoundError("nothing here")
        asked.append(allow_patterns)
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = Diffusers(REPO, Config()).load()
    assert "v1-5-pruned.ckpt" not in asked[0]
    assert "unet/diffusion_pytorch_model.safetensors" in asked[0]
    assert not model.facts.base_hash.startswith("hub:")


@pytest.mark.parametrize(
    ("gone", "code"), [("model_index.json", "VU-M071"), ("unet/diffusion_pytorch_model.safetensors", "VU-M073")]
)
def test_incomplete_repository(
    gone: str, code: str, hub_cache: Path, pipelines: Pipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(pipelines["epsilon", None], tmp_path / "remote"))
    (root / gone).unlink()
    _answering(monkeypatch, root)
    assert _error().code == code


def test_absent_variant_names_those_offered(
    hub_cache: Path, pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering(monkeypatch, pipelines["epsilon", None])
    error = _error(Config(variant="fp16"))
    assert error.code == "VU-M073"
    assert "diffusion_pytorch_model.safetensors" in error.remedy


def test_refusals_of_the_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    class Refusing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def model_info(self, *_: object, **__: object) -> Any:
            raise self.error

    def bare(kind: type[Exception]) -> Exception:
        return kind.__new__(kind)

    for kind, said in (
        (errors.GatedRepoError, "licence"),
        (errors.RepositoryNotFoundError, "does not exist"),
        (errors.RevisionNotFoundError, "no such revision"),
    ):
        monkeypatch.setattr("huggingface_hub.HfApi", lambda kind=kind: Refusing(bare(kind)))
        error = _error(Config(revision="v9"))
        assert error.code == "VU-M076"
        assert said in error.problem


def test_wanted_files_of_a_variant() -> None:
    names = (
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "feature_extractor/preprocessor_config.json",
        "images/sample.png",
    )
    assert Remote(REPO, None, "fp16").wanted(names) == (
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
    )
