"""What need not be computed twice, found by its content: observations of untouched models, attributions."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from vu_core.atomic import write_bytes, write_text
from vu_core.contracts import Attribution, Model
from vu_core.data import Examples, ForgetRetain, digest
from vu_core.errors import RecordError
from vu_core.run import Run, require_finite
from vu_core.safetensors_header import read_header
from vu_core.source import Source

if TYPE_CHECKING:
    from torch import Tensor


def cache_root() -> Path:
    """Return the cache folder: ``$VU_CACHE``, else ``vu`` in the user's cache folder; it need not exist."""
    named = os.environ.get("VU_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vu"
    local = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(local) if local else Path.home() / ".cache") / "vu"


@attrs.frozen
class CacheEntry:
    """One cached file.

    Args:
        kind: a folder of the cache; about: what lies in it; path, bytes: the file and its size.
        modified: when it was written, in seconds since 1970.
    """

    kind: str
    about: str
    path: Path
    bytes: int
    modified: float


@attrs.frozen
class Cache:
    """A folder of files whose names are hashes of everything that went into them.

    Nothing in it is needed: a missing, torn or foreign file is a miss, never an error. Where nothing can be written,
    `put_json` and `put_tensors` raise OSError; `dispensable` makes a warning of it.

    Args:
        root: see `cache_root`.

    Example:
        >>> import tempfile
        >>> cache = Cache(Path(tempfile.mkdtemp()))
        >>> cache.put_json("before", "abc", {"n": 3}, about="toy")
        >>> cache.get_json("before", "abc")
        {'n': 3}
        >>> cache.get_json("before", "other") is None
        True
    """

    root: Path

    def get_json(self, kind: str, key: str) -> Any | None:
        """Return the value stored under ``key``, or ``None``."""
        try:
            stored = json.loads(self._path(kind, key, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(stored, dict) or stored.get("key") != key or "value" not in stored:
            return None
        return stored["value"]

    def put_json(self, kind: str, key: str, value: Any, *, about: str = "") -> None:
        """Store a JSON value; ``about`` is what `entries` shows."""
        text = json.dumps({"key": key, "about": about, "value": value}, allow_nan=False)
        write_text(self._path(kind, key, "json"), text)

    def get_tensors(self, kind: str, key: str) -> dict[str, Tensor] | None:
        """Return the tensors stored under ``key``, or ``None``."""
        from safetensors import SafetensorError, safe_open

        path = self._path(kind, key, "safetensors")
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("vu", "{}"))
                if facts.get("key") != key:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except (OSError, ValueError, SafetensorError):
            return None

    def put_tensors(self, kind: str, key: str, tensors: Mapping[str, Tensor], *, about: str = "") -> None:
        """Store tensors; ``about`` is what `entries` shows."""
        from safetensors.torch import save

        facts = json.dumps({"key": key, "about": about})
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self._path(kind, key, "safetensors"), save(plain, {"vu": facts}))

    def entries(self, kind: str | None = None) -> tuple[CacheEntry, ...]:
        """Return what lies in the cache, newest first."""
        found = []
        for path in self.root.glob(f"{kind or '*'}/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process tidies up
                continue
            if path.suffix in (".json", ".safetensors") and not path.name.startswith("."):
                found.append(CacheEntry(path.parent.name, _about(path), path, status.st_size, status.st_mtime))
        return tuple(sorted(found, key=lambda entry: (-entry.modified, entry.path.name)))

    def clear(self, kind: str | None = None) -> tuple[CacheEntry, ...]:
        """Delete the entries (of one kind) and return what was deleted. Raises: RecordError when a file resists."""
        gone = self.entries(kind)
        for entry in gone:
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise RecordError(
                    "VU-R057",
                    f"The cache file {entry.path.name} cannot be deleted: {error.strerror}.",
                    "Check the permissions of the cache folder, or point VU_CACHE to another one.",
                    where=str(entry.path),
                ) from error
        return gone

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.root / kind / f"{digest(key)[:32]}.{suffix}"


def _about(path: Path) -> str:
    """Read what an entry is about without reading the whole of a large file."""
    try:
        if path.suffix == ".safetensors":
            return str(json.loads(read_header(path)["__metadata__"]["vu"])["about"])
        return str(json.loads(path.read_text(encoding="utf-8"))["about"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"


@contextmanager
def dispensable(emit: Callable[..., None]) -> Iterator[None]:
    """Turn the failure to write into the cache into a warning: nothing in it is needed, so no run ends for it.

    Args:
        emit: `Run.emit`.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        emit("warning", text=f"The cache cannot be written: {why}. Point VU_CACHE to a folder that can.")


@attrs.frozen
class CachedAttribution:
    """An attribution whose scores come from the cache when content, settings and version are equal.

    The key holds everything that the scores depend on: base weights, the tables that were handed over, seed, precision,
    device and thread count, the attribution's name, version and settings, and the candidates. A mismatch means
    computing again, and so do tables whose images are not encoded: what a function loads has no content to compare.

    Args:
        inner: the plugin; name: its registered name; settings: its ``Config`` instance.
        content: what else the scores depend on, such as the settings of the data.
        cache: where scores are kept.
        served: the keys that were answered from the cache so far.
    """

    Config: ClassVar[type[Any]] = object
    source: ClassVar[Source] = Source("cache of attributions", "", "own")
    checks_scores: ClassVar[bool] = True
    """`Run.attribute` need not look for scores that are not finite."""
    inner: Attribution[Any]
    name: str
    settings: Any
    content: str
    cache: Cache
    served: list[str] = attrs.field(factory=list, init=False)

    @property
    def version(self) -> str:
        """Version of the wrapped attribution."""
        return self.inner.version

    def attribute(
        self, model: Model, data: ForgetRetain, run: Run, *, candidates: Collection[str] | None = None
    ) -> Mapping[str, Tensor]:
        """Return the scores of the wrapped attribution; see `vu_core.contracts.Attribution.attribute`.

        Raises:
            UnlearnError: ``VU-U036`` when a score is not finite; nothing is kept then.
        """
        import torch

        tables = tables_digest(data)
        if tables is None:
            return self._computed(model, data, run, candidates)
        chosen = "all" if candidates is None else digest(*sorted(candidates))
        environment = (run.precision, run.device, str(torch.get_num_threads()), torch.__version__)
        what = (self.name, self.version, settings_text(self.settings))
        content = (self.content, run.base_hash, run.data_digest, tables, str(run.seed))
        key = digest("attribution", *what, *content, *environment, chosen)
        stored = self.cache.get_tensors("attribution", key)
        if stored is not None:
            self.served.append(key)
            run.emit("note", text=f"The {self.name} scores come from the cache: nothing they depend on has changed.")
            return {name: tensor.to(run.device) for name, tensor in stored.items()}
        scores = self._computed(model, data, run, candidates)
        with dispensable(run.emit):
            self.cache.put_tensors("attribution", key, scores, about=f"{self.name} of {len(scores)} tensors")
        return scores

    def _computed(
        self, model: Model, data: ForgetRetain, run: Run, candidates: Collection[str] | None
    ) -> Mapping[str, Tensor]:
        scores = self.inner.attribute(model, data, run, candidates=candidates)
        require_finite(scores, self.name)  # before they are kept: no later run may find them
        return scores


def tables_digest(data: ForgetRetain) -> str | None:
    """Return a hash of the content of all tables; ``None`` when images come from a function and are not encoded.

    Args:
        data: the tables that a method or a regularizer hands over, which need not be those of the run.
    """
    tables = (data.forget, data.retain, data.validation_forget, data.validation_retain)
    if any(table.load is not None and (table.reload or not table.tensors) for table in tables if len(table)):
        return None
    return digest(*(part for table in tables for part in _content(table)))


def _content(table: Examples) -> Iterator[str]:
    import torch

    yield json.dumps([table.side, table.captions, table.overwrites, dict(table.labels)], sort_keys=True)
    for name, column in sorted(table.tensors.items()):
        raw = column.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        yield f"{name} {column.dtype} {tuple(column.shape)} {hashlib.sha256(raw).hexdigest()}"


def settings_text(settings: Any) -> str:
    """Return a ``Config`` instance as sorted JSON, for keys."""
    return json.dumps(attrs.asdict(settings), sort_keys=True, default=str)
