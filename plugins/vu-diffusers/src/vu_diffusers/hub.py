"""Models by hub id: found in the local cache, else fetched, never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vu_core import ModelError, ModelFacts, StoredTensor, digest
from vu_diffusers.folder import CLASSES, CONFIGS, MODEL_INDEX, STEMS, check_configs, check_index, describe, read_json

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_JSON_FILES = (MODEL_INDEX, *CONFIGS.values())
_PATIENCE = 10.0  # seconds for one answer of the hub


@attrs.frozen
class Remote:
    """A repository that is not (wholly) in the local cache.

    Args:
        repo: ``owner/name``; revision: branch, tag or commit; variant: variant of the weights.
    """

    repo: str
    revision: str | None
    variant: str | None

    def wanted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of the repository's files are needed: one variant, safetensors only."""
        middle = re.escape(f".{self.variant}") if self.variant else ""
        weights = "|".join(
            rf"{part}/{stem}{middle}(-\d{{5}}-of-\d{{5}})?\.safetensors|{part}/{stem}\.safetensors\.index{middle}\.json"
            for part, stem in STEMS.items()
        )
        pattern = re.compile(rf"{'|'.join(map(re.escape, _JSON_FILES))}|README\.md|tokenizer/[^/]+|{weights}")
        return tuple(name for name in names if pattern.fullmatch(name))

    def cached(self) -> Path | None:
        """Return the snapshot folder in the local cache, which may be incomplete, or ``None``."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.repo, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None

    def facts(self, name: str, generation: Mapping[str, float]) -> ModelFacts:
        """Ask the hub for sizes and shapes; fetches the JSON files only.

        The hash starts with ``hub:`` and stands for commit and file hashes: the tensors are not here yet.

        Raises:
            ModelError: VU-M075 without network, VU-M076 when the hub refuses, VU-M071 to VU-M073 for what it holds.
        """
        with _hub_errors(self.repo):
            info = self._api().model_info(self.repo, revision=self.revision, files_metadata=True, timeout=_PATIENCE)
            files = {file.rfilename: file for file in info.siblings or ()}
        chosen = self.wanted(tuple(files))
        self._check_complete(chosen, tuple(files))
        configs = self._configs()
        with _hub_errors(self.repo):
            tensors = {part: self._tensors([n for n in chosen if n.startswith(f"{part}/")]) for part in CLASSES}
        marks = [f"{file}\0{getattr(files[file], 'blob_id', '')}" for file in sorted(chosen)]
        hashed = "hub:" + digest(self.repo, str(info.sha), *marks)
        downloads = sum(int(files[file].size or 0) for file in chosen)
        licence = str(getattr(info.card_data, "license", "") or "")
        return describe(name, self.repo, hashed, configs, tensors, generation, downloads=downloads, licence=licence)

    def download(self) -> Path:
        """Fetch what is missing. Raises: ModelError VU-M075, VU-M076."""
        from huggingface_hub import snapshot_download

        with _hub_errors(self.repo):
            info = self._api().model_info(self.repo, revision=self.revision, timeout=_PATIENCE)
            names = self.wanted(tuple(file.rfilename for file in info.siblings or ()))
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=list(names)))

    def _configs(self) -> dict[str, Mapping[str, Any]]:
        from huggingface_hub import hf_hub_download

        with _hub_errors(self.repo):
            paths = {name: Path(hf_hub_download(self.repo, name, revision=self.revision)) for name in _JSON_FILES}
        check_index(paths[MODEL_INDEX])
        configs: dict[str, Mapping[str, Any]] = {part: read_json(paths[file]) for part, file in CONFIGS.items()}
        check_configs(configs, self.repo)
        return configs

    def _tensors(self, names: list[str]) -> tuple[StoredTensor, ...]:
        found = []
        for name in names:
            if name.endswith(".safetensors"):
                header = self._api().parse_safetensors_file_metadata(self.repo, name, revision=self.revision)
                found += [StoredTensor(key, t.dtype, tuple(t.shape)) for key, t in sorted(header.tensors.items())]
        return tuple(found)

    def _check_complete(self, chosen: tuple[str, ...], names: tuple[str, ...]) -> None:
        missing = [name for name in _JSON_FILES if name not in chosen]
        if missing:
            raise ModelError(
                "VU-M071",
                f"The repository {self.repo!r} is no Stable Diffusion pipeline: it has no {missing[0]!r}.",
                "Name a repository that holds a pipeline in diffusers' layout.",
                where=self.repo,
            )
        for part in CLASSES:
            if not any(name.startswith(f"{part}/") and name.endswith(".safetensors") for name in chosen):
                kind = f"of variant {self.variant!r} " if self.variant else ""
                offered = [name for name in names if name.startswith(f"{part}/") and name.endswith(".safetensors")]
                raise ModelError(
                    "VU-M073",
                    f"The repository {self.repo!r} has no safetensors weights {kind}for {part}.",
                    f"Set model.variant to match one of {', '.join(offered)}." if offered else "Choose another model.",
                    where=self.repo,
                )

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()


class _hub_errors:
    """Turn what the hub client raises into errors that say what to do."""

    def __init__(self, repo: str) -> None:
        self.repo = repo

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if error is None or isinstance(error, ModelError) or not isinstance(error, Exception):
            return
        if isinstance(error, GatedRepoError):
            raise self._refused("asks you to accept its licence first", "Accept it on the hub and log in.") from error
        if isinstance(error, RevisionNotFoundError):
            raise self._refused("has no such revision", "Check model.revision.") from error
        if isinstance(error, RepositoryNotFoundError | HFValidationError):
            raise self._refused("does not exist or is private", "Check the spelling, or log in to the hub.") from error
        raise unreachable(self.repo, str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def _refused(self, problem: str, remedy: str) -> ModelError:
        return ModelError("VU-M076", f"The repository {self.repo!r} {problem}.", remedy, where="model.ref")


def unreachable(repo: str, cause: str) -> ModelError:
    """Return the error for a model that is neither in the local cache nor fetched."""
    return ModelError(
        "VU-M075",
        f"The model {repo!r} is not complete in the local hub cache and cannot be fetched: {cause}.",
        "Connect to the network, or name a local folder; if you meant a folder, there is none of that name.",
        where="model.ref",
    )
