"""Classifiers by hub id: found in the local cache, else fetched, never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from vu_classifiers.pretrained_folder import (
    CONFIG,
    INDEX,
    PREPROCESSOR,
    WEIGHTS,
    Preprocessing,
    Settings,
    describe,
    image_size,
    no_weights,
    not_a_classifier,
    read_config,
    read_preprocessing,
)
from vu_core import ModelError, ModelFacts, StoredTensor, digest

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
PATIENCE = 10.0  # seconds for one answer of the hub


@attrs.frozen
class Remote:
    """A repository that is not (wholly) in the local cache.

    Args:
        repo: ``owner/name``; revision: branch, tag or commit.
    """

    repo: str
    revision: str | None

    def cached(self) -> Path | None:
        """Return the snapshot folder in the local cache, which may be incomplete, or ``None``."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.repo, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None

    def facts(self, name: str, size: int | None) -> ModelFacts:
        """Ask the hub for sizes and shapes; fetches the JSON files only.

        The hash starts with ``hub:`` and stands for commit and file hashes: the tensors are not here yet.

        Raises:
            ModelError: ``VU-M075`` without network, ``VU-M076`` when the hub refuses, ``VU-M111`` to ``VU-M114`` for
                what it holds.
        """
        info = self._info(sizes=True)
        files = {file.rfilename: file for file in info.siblings or ()}
        chosen = wanted(self.repo, tuple(files))
        config, seen = self._settings(PREPROCESSOR in files)
        marks = [f"{file}\0{getattr(files[file], 'blob_id', '')}" for file in sorted(chosen)]
        return describe(
            name,
            self.repo,
            "hub:" + digest(self.repo, str(info.sha), *marks),
            self._tensors([file for file in chosen if file.endswith(".safetensors")]),
            size or image_size(config, seen, self.repo),
            downloads=sum(int(files[file].size or 0) for file in chosen),
            licence=str(getattr(info.card_data, "license", "") or ""),
        )

    def download(self) -> Path:
        """Fetch what is missing. Raises: ModelError ``VU-M075``, ``VU-M076``, ``VU-M111``, ``VU-M114``."""
        from huggingface_hub import snapshot_download

        names = wanted(self.repo, tuple(file.rfilename for file in self._info().siblings or ()))
        with _hub_errors(self.repo):
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=list(names)))

    def _info(self, *, sizes: bool = False) -> Any:
        with _hub_errors(self.repo):
            return _api().model_info(self.repo, revision=self.revision, files_metadata=sizes, timeout=PATIENCE)

    def _settings(self, has_preprocessing: bool) -> tuple[Settings, Preprocessing]:
        from huggingface_hub import hf_hub_download

        with _hub_errors(self.repo):
            config = Path(hf_hub_download(self.repo, CONFIG, revision=self.revision))
            seen = Path(hf_hub_download(self.repo, PREPROCESSOR, revision=self.revision)) if has_preprocessing else None
        return read_config(config), read_preprocessing(seen)

    def _tensors(self, names: list[str]) -> tuple[StoredTensor, ...]:
        found = []
        with _hub_errors(self.repo):
            for name in names:
                header = _api().parse_safetensors_file_metadata(self.repo, name, revision=self.revision)
                found += [StoredTensor(key, t.dtype, tuple(t.shape)) for key, t in sorted(header.tensors.items())]
        return tuple(found)


def wanted(repo: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a repository's files are needed: settings, model card and safetensors weights.

    Raises:
        ModelError: there is no configuration (``VU-M111``) or no safetensors weights (``VU-M114``).
    """
    if CONFIG not in names:
        raise not_a_classifier(repo, f"it has no {CONFIG}")
    weights = [WEIGHTS] if WEIGHTS in names else [name for name in names if SHARD.fullmatch(name) or name == INDEX]
    if not weights:
        raise no_weights(repo, names)
    return tuple(name for name in names if name in (CONFIG, PREPROCESSOR, "README.md", *weights))


def unreachable(repo: str, cause: str) -> ModelError:
    """Return the error for a model that is neither in the local cache nor fetched."""
    return ModelError(
        "VU-M075",
        f"The model {repo!r} is not complete in the local hub cache and cannot be fetched: {cause}.",
        "Connect to the network, or name a local folder; if you meant a folder, there is none of that name.",
        where="model.ref",
    )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub client raises into errors that say what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise _refused(repo, "asks you to accept its licence first", "Accept it on the hub and log in.") from error
    except RevisionNotFoundError as error:
        raise _refused(repo, "has no such revision", "Check model.revision.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        remedy = "Check the spelling, or log in to the hub."
        raise _refused(repo, "does not exist or is private", remedy) from error
    except ModelError:
        raise
    except Exception as error:  # whatever the client and the network raise, the model cannot be fetched
        raise unreachable(repo, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _refused(repo: str, problem: str, remedy: str) -> ModelError:
    return ModelError("VU-M076", f"The repository {repo!r} {problem}.", remedy, where="model.ref")
