"""The edit of a run as files that other tools read: written, read again, compared, and only then put in place.

The exporter of a format writes and measures; here it is judged. Public to plugins, as `vu_core.workbench`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vu_core.atomic import write_text
from vu_core.blame import asked
from vu_core.config import parse_set
from vu_core.contracts import Check, Denoiser, Exporter, Host
from vu_core.data import Batch, Examples
from vu_core.errors import ConfigError, EditError, PlanError, PluginError
from vu_core.event import Event, stage
from vu_core.export_card import change_sentences, check_texts, export_card
from vu_core.plan import Capability
from vu_core.registry import Entry
from vu_core.report import hub_id, short_name, title
from vu_core.whole_folder import is_full, unwritable, whole_folder, writing_folder
from vu_core.workbench import Workbench, opened

if TYPE_CHECKING:
    from torch import Tensor

    from vu_core.edit import Edit

CARD = "README.md"
_HERE = r"""(['"])\.\1"""  # the folder of the export, as the lines that load it name it
_PROBES = 4  # forget images on which a refitted edit is compared with the whole one


@attrs.frozen
class Export:
    """What an export has put in place.

    Args:
        folder: where it lies; format: name of the exporter; title: such as ``canvas-diffusion without style:neon``.
        checks: the comparisons, all passed.
        usage: the lines of Python that load it, from the folder where it lies or from the hub.
        address: where it will lie on the hub; empty where nobody knows.
        files: size in bytes per file, relative to the folder, the model card last.
        facts: how it differs from the trained edit: ``scale``, ``densify``, ``refit_rank``, ``refit_error`` (relative
            Frobenius error of the change) and ``refit_denoiser_error`` (of the outputs, as a share of what the edit
            changes there); empty when it does not.
    """

    folder: Path
    format: str
    title: str
    checks: tuple[Check, ...]
    usage: str
    address: str = ""
    files: Mapping[str, int] = attrs.field(factory=dict)
    facts: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def changes(self) -> tuple[str, ...]:
        """One sentence per way in which it differs from the trained edit."""
        return change_sentences(self.facts)


def export(
    folder: Path,
    to: str,
    out: Path,
    host: Host,
    on_event: Callable[[Event], None],
    *,
    settings: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    densify: float | None = None,
    refit_rank: int | None = None,
    address: str = "",
) -> Export:
    """Write the edit of a run in a format, prove that it is read again as it is, and add a model card.

    The edit is scaled, then densified, then refitted::

        delta -> s delta -> s delta + noise outside its support -> its best approximation of rank r

    Args:
        folder: the run folder; nothing is written there.
        to: name of the exporter.
        out: the folder of the export: one that does not exist yet, or an empty one.
        host: who takes part.
        on_event: sees every event.
        settings: of the exporter's ``Config``.
        scale: strength s, of which 1 is the trained one.
        densify: strength of the noise; see `vu_core.adapters.densified`.
        refit_rank: rank r, at least 1; see `vu_core.adapters.refit`.
        address: where the files will lie on the hub; the lines that load them then name it.

    Raises:
        ConfigError: a setting of the exporter, or one of the numbers, cannot be used (``VU-C126``).
        PluginError: nobody brings the format, or the exporter failed or does not keep its contract (``VU-P005``).
        PlanError: the exporter needs what the model lacks (``VU-L002``), or the edit was made on others (``VU-L128``).
        RecordError: there is no run (``VU-R052``), ``out`` is taken (``VU-R124``) or cannot be written (``VU-R125``).
        EditError: the format cannot express the edit, or what was written does not reproduce it (``VU-E055``).
            Whatever is raised, nothing is left behind.
    """
    from vu_core.stages.apply import check_base
    from vu_core.stages.load import with_settings

    changes = _checked_changes(scale, densify, refit_rank)
    entry = host.plugins.registry.get("exporter", to)
    exporter: Exporter[Any] = with_settings(entry, settings or {}, code="VU-C126", what="exporter")
    with whole_folder(out) as staging, opened(folder, host, on_event) as bench:
        bench.run.stage = "export"
        _check_needs(entry, bench)
        check_base(bench.model, bench.edit)
        _check_lies_on_base(folder, bench.edit)
        edit, facts = _changed(bench, changes)
        with stage(bench.emit, "export"), _full_disk_told(out):
            files = _written(exporter, entry, edit, bench, staging)
        with stage(bench.emit, "verify"), _full_disk_told(out):
            checks = _verified(exporter, entry, files, edit, bench)
        _check_nothing_else(entry, files, staging)
        usage = _usage(exporter, entry, files, bench.record.model, address)
        made = Export(out, entry.name, title(bench.record), checks, usage, address, facts=facts)
        with writing_folder(out):
            write_text(staging / CARD, export_card(made, bench.record, bench.bench))
            sizes = {path.relative_to(staging).as_posix(): path.stat().st_size for path in files}
        return attrs.evolve(made, files={**sizes, CARD: (staging / CARD).stat().st_size})


def told(texts: Sequence[str]) -> dict[str, Any]:
    """Return settings that were written as ``KEY=VALUE`` on a command line; the last one of a key holds.

    Raises:
        ConfigError: a text is no ``KEY=VALUE`` (``VU-C004``).

    Example:
        >>> told(["precision=fp16", "shards=2"])
        {'precision': 'fp16', 'shards': 2}
    """
    return {override.key: override.value for override in map(parse_set, texts)}


@attrs.frozen
class _Changes:
    """What is done to the edit before it is written."""

    scale: float
    densify: float | None
    refit_rank: int | None


def _checked_changes(scale: float, densify: float | None, refit_rank: int | None) -> _Changes:
    wrong = ""
    if not math.isfinite(scale) or scale == 0:
        where, wrong = "--scale", f"must be a finite number other than 0, but is {scale:g}"
    elif densify is not None and not 0 < densify < math.inf:
        where, wrong = "--densify", f"must be a finite number above 0, but is {densify:g}"
    elif refit_rank is not None and refit_rank < 1:
        where, wrong = "--refit-rank", f"must be at least 1, but is {refit_rank}"
    if wrong:
        raise ConfigError("VU-C126", f"{where} {wrong}.", "Leave it out for the edit as it was trained.", where=where)
    return _Changes(scale, densify, refit_rank)


def _check_needs(entry: Entry, bench: Workbench) -> None:
    missing = entry.lacks(bench.model.facts.capabilities)
    if missing:
        needed = ", ".join(missing).replace("|", "' or '")
        raise PlanError(
            "VU-L002",
            f"The exporter '{entry.name}' needs '{needed}', which the model '{bench.model.facts.name}' lacks.",
            "Choose another format; `vu list-plugins --kind exporter` lists them.",
            where=f"exporter {entry.name!r}",
        )


def _check_lies_on_base(folder: Path, edit: Edit) -> None:
    """Object to an edit that was made on others: what is exported must be right on the base model as it is."""
    if edit.parents:
        raise PlanError(
            "VU-L128",
            f"The edit of {str(folder)!r} was made on {len(edit.parents)} earlier edits, and would be exported without "
            "them.",
            "Put them into one edit first: `vu compose` with their runs and this one; then export that run.",
            where=str(folder),
        )


def _changed(bench: Workbench, changes: _Changes) -> tuple[Edit, dict[str, Any]]:
    """Return the edit that is written, and how it differs from the trained one."""
    from vu_core.adapters import densified, refit, scaled

    edit, network = bench.edit, bench.model.network
    facts: dict[str, Any] = {}
    if changes.scale != 1:
        edit = scaled(edit, changes.scale, network)
        facts["scale"] = changes.scale
    if changes.densify is not None:
        sparse = edit
        edit = densified(sparse, changes.densify, bench.run.generator("densify"), network)
        if all(edit.parts[name] is part for name, part in sparse):
            raise ConfigError(
                "VU-C126",
                "--densify has nothing to do: the edit leaves no weight of its tensors alone.",
                "Leave it out; it is for edits of sparse methods.",
                where="--densify",
            )
        facts["densify"] = changes.densify
    if changes.refit_rank is not None:
        whole = edit
        edit, error = refit(whole, changes.refit_rank)
        facts |= {"refit_rank": changes.refit_rank, "refit_error": float(error)}
        outputs = _denoiser_error(bench, edit, whole)
        facts |= {} if outputs is None else {"refit_denoiser_error": outputs}
    return edit, facts


def _denoiser_error(bench: Workbench, found: Edit, wanted: Edit) -> float | None:
    """Return how far the denoiser under one edit is from that under another, as a share of what the other does.

        ||y_found - y_wanted||_F / ||y_wanted - y_base||_F        y: outputs for noisy forget images and their captions

    ``None`` where the model is no denoiser, there is no forget image, or the edit does not reach the outputs.
    """
    import torch

    from vu_core.adapters import apply_edit

    model, network = bench.model, bench.model.network
    if not isinstance(model, Denoiser) or Capability.DENOISE not in model.facts.capabilities:
        return None
    plan, data = bench.bench.plan, bench.examples()
    with asked(plan.config.model.entry, bench.bench.entries), torch.no_grad():
        examples = model.prepare(_first(data.validation_forget or data.forget), bench.run)
        if not len(examples):
            return None
        rows = tuple(range(len(examples)))
        batch = Batch(examples, rows, 0, rows, bench.run, torch.device(bench.run.device))
        clean = model.latents(batch)  # (B, C, h, w)
        timesteps = torch.linspace(0, model.timesteps - 1, len(rows) + 2, device=clean.device).long()[1:-1]  # (B,)
        noisy = model.add_noise(clean, batch.normal("refit", clean.shape[1:]), timesteps)

        def outputs() -> Tensor:
            return model.predict(noisy, timesteps, model.embed(batch.captions)).double()

        base = outputs()
        with apply_edit(network, wanted):
            target = outputs()
        with apply_edit(network, found):
            error = (outputs() - target).norm()
    effect = (target - base).norm()
    return float(error / effect) if effect > 0 else None


def _first(examples: Examples) -> Examples:
    """Return the first rows of a table."""
    rows = slice(_PROBES)
    return attrs.evolve(
        examples,
        captions=examples.captions[rows],
        overwrites=None if examples.overwrites is None else examples.overwrites[rows],
        labels={axis: values[rows] for axis, values in examples.labels.items()},
        tensors={name: column[rows] for name, column in examples.tensors.items()},
    )


def _written(exporter: Exporter[Any], entry: Entry, edit: Edit, bench: Workbench, staging: Path) -> tuple[Path, ...]:
    """Let the exporter write, and check that it wrote what it says."""
    from vu_core.stages.guard import untouched

    with untouched(bench.model.network, entry.name), asked(entry, bench.bench.entries):
        files = exporter.export(edit, bench.model, staging, bench.run)
    if not _is_tuple_of(Path, files):
        raise _breaks(entry, "wrote no file")
    root = staging.resolve()
    strange = [path for path in files if not (path.is_file() and path.resolve().is_relative_to(root))]
    if strange:
        raise _breaks(entry, f"names {str(strange[0])!r}, which is no file in the folder that it was given")
    return files


def _check_nothing_else(entry: Entry, files: tuple[Path, ...], staging: Path) -> None:
    """Object to files that nobody knows of, whether they were left by writing or by reading."""
    unnamed = sorted(path for path in staging.rglob("*") if path.is_file() and path not in files)
    if unnamed:
        raise _breaks(entry, f"wrote {unnamed[0].relative_to(staging).as_posix()!r}, but does not name it")


def _verified(
    exporter: Exporter[Any], entry: Entry, files: tuple[Path, ...], edit: Edit, bench: Workbench
) -> tuple[Check, ...]:
    """Let the exporter compare, and judge."""
    from vu_core.stages.guard import untouched

    with untouched(bench.model.network, entry.name), asked(entry, bench.bench.entries):
        checks = exporter.verify(files, edit, bench.model, bench.run)
    if not _is_tuple_of(Check, checks):
        raise _breaks(entry, "compared nothing")
    failed = [check for check in checks if not (check.passed and 0 <= check.error < math.inf)]
    if failed:
        lines = [
            f"{check.what}: error {error}, limit {limit}" + (" (too large)" if check in failed else "")
            for check in checks
            for error, limit in [check_texts(check)]
        ]
        raise EditError(
            "VU-E055",
            "\n".join([f"The export as '{entry.name}' does not reproduce the edit; nothing was kept.", *lines]),
            f"Export with more precision (`vu describe {entry.name}` lists the settings), or in another format. If it "
            "fails in fp32 too, the versions of the libraries that are installed may read the format in another way.",
            where=f"exporter {entry.name!r} of {entry.distribution} {entry.version}",
        )
    return checks


def _usage(exporter: Exporter[Any], entry: Entry, files: tuple[Path, ...], model: str, address: str) -> str:
    """Return the lines that load the files, with the addresses of base model and export where they have one."""
    with asked(entry):
        lines = exporter.usage(files, hub_id(model) or f"path/to/{short_name(model)}").strip()
    try:
        ast.parse(lines)
    except SyntaxError as error:
        raise _breaks(entry, "says that its files are loaded with lines that are no Python") from error
    return re.sub(_HERE, json.dumps(address), lines) if address else lines


@contextmanager
def _full_disk_told(out: Path) -> Iterator[None]:
    """Turn the error of a full disk, for which no exporter is to blame, into that of the folder."""
    try:
        yield
    except PluginError as error:
        if error.__cause__ is None or not is_full(error.__cause__):
            raise
        raise unwritable(out, error.__cause__) from error.__cause__


def _is_tuple_of(kind: type[Any], found: Any) -> bool:
    return isinstance(found, tuple) and bool(found) and all(isinstance(each, kind) for each in found)


def _breaks(entry: Entry, how: str) -> PluginError:
    return PluginError(
        "VU-P005",
        f"The exporter '{entry.name}' ({entry.target}) {how}.",
        f"Update {entry.distribution}; its authors find every rule in vu_core.testing.",
        where=f"distribution {entry.distribution} {entry.version}",
    )
