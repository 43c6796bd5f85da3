"""Every check of exporters turns red on an exporter that is broken in just that way."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

import vu_core.testing as kit
from vu_core import Check, Edit, LowRank, Run
from vu_core.adapters import Lora, LoraConfig, apply_edit, load_edit, save_edit
from vu_core.testing import toy_methods as methods
from vu_core.testing.proof import Broken, Proof, ProofTests, but, case

COUNTER = itertools.count(1)

X = methods.ToyExporter
FINE = (Check("denoiser", 0.0, 1e-4), Check("image", 0.0, 1e-3))


def exporter(**attributes: Any) -> Callable[[], type[Any]]:
    return lambda: case(kit.ExporterTests, but(X, **attributes), other_values={"name": "other"})


def exporting(change: Callable[[Edit], Edit]) -> Callable[[], type[Any]]:
    """An exporter that writes another edit than it is handed."""

    def export(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
        return X.export(self, change(edit), model, folder, run)

    return exporter(export=export)


def per_part(change: Callable[[LowRank], LowRank]) -> Callable[[Edit], Edit]:
    """A change of every low-rank part."""
    return lambda edit: attrs.evolve(
        edit, parts={name: change(part) if isinstance(part, LowRank) else part for name, part in edit}
    )


halved = exporting(per_part(lambda part: attrs.evolve(part, alpha=part.alpha / 2)))
unmasked = exporting(per_part(lambda part: attrs.evolve(part, mask=None)))
stamped = exporting(lambda edit: attrs.evolve(edit, facts={"time": next(COUNTER)}))


def elsewhere(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    save_edit(edit, folder.parent / "toy.safetensors")
    return (folder.parent / "toy.safetensors",)


def untidy(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    (folder / "notes.txt").write_text("forgotten")
    return X.export(self, edit, model, folder, run)


def beside(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    (folder.parent / "cache.json").write_text("{}")
    return X.export(self, edit, model, folder, run)


def pickled(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    torch.save({name: part.delta() for name, part in edit if isinstance(part, LowRank)}, folder / "toy.bin")
    return (folder / "toy.bin",)


def in_order_of_parts(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    return X.export(self, attrs.evolve(edit, facts={"first": next(iter(edit.parts))}), model, folder, run)


def sleepy(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    with torch.no_grad():
        model.network["unet"].conv_in.weight.add_(0.01)
    return X.export(self, edit, model, folder, run)


def writes_anything(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    save_edit(edit, folder / "toy.safetensors")
    return (folder / "toy.safetensors",)


def writes_too_early(self: Any, edit: Edit, model: Any, folder: Path, run: Run) -> tuple[Path, ...]:
    writes_anything(self, edit, model, folder, run)
    return X.export(self, edit, model, folder, run)


def satisfied(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    return FINE


def compares_with_itself(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    """What stands in the files is never looked at."""
    with apply_edit(model.network, edit):
        found, _ = methods._answers(model)
    with apply_edit(model.network, edit):
        wanted, _ = methods._answers(model)
    return Check("denoiser", float((found - wanted).abs().max()), 1e-4), FINE[1]


def looks_at_the_size(self: Any, files: tuple[Path, ...], edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    """A file that is there counts as right."""
    return FINE if all(file.stat().st_size for file in files) else ()


def blind_to_masks(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    """Writer and reader agree with each other, and neither is right."""
    dense = per_part(lambda part: attrs.evolve(part, mask=None))(edit)
    return X.verify(self, files, dense, model, run)


def lenient(limit: float) -> Callable[..., tuple[Check, ...]]:
    def verify(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
        return tuple(attrs.evolve(check, limit=limit) for check in X.verify(self, files, edit, model, run))

    return verify


def greedy(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    """The largest error over layers, as Python's ``max`` sees it: one that is no number counts as none."""
    denoiser, _ = X.verify(self, files, edit, model, run)
    return attrs.evolve(denoiser, error=max(0.0, denoiser.error)), FINE[1]


def adapter_left_on(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    checks = X.verify(self, files, edit, model, run)
    Lora(LoraConfig(rank=1, targets=("to_k",))).attach(model, run)
    return checks


def note_left_on(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    model.network["unet"].peft_config = {"default": None}
    return X.verify(self, files, edit, model, run)


def adapter_left_on_failure(self: Any, files: Any, edit: Edit, model: Any, run: Run) -> tuple[Check, ...]:
    theta = Lora(LoraConfig(rank=1, targets=("to_k",))).attach(model, run)
    load_edit(files[0])
    theta.detach()
    return X.verify(self, files, edit, model, run)


def masked_and_blind() -> type[Any]:
    """Drops masks when it writes and when it compares."""
    dropping = unmasked().plugin
    return case(kit.ExporterTests, but(dropping, verify=blind_to_masks), other_values={"name": "other"})


BROKEN: list[Broken] = [
    Broken(name, make, words)
    for name, make, words in [
        ("test_files_lie_in_the_folder", exporter(export=elsewhere), "outside of the folder"),
        ("test_files_lie_in_the_folder", exporter(export=pickled, verify=satisfied), "pickle"),
        ("test_files_lie_in_the_folder", exporter(export=untidy), "not named: notes.txt"),
        ("test_files_lie_in_the_folder", exporter(export=beside), "not named: cache.json"),
        ("test_files_lie_in_the_folder", exporter(export=lambda *a: (), verify=satisfied), "no files"),
        ("test_same_edit_same_bytes", stamped, "two exports"),
        ("test_same_edit_same_bytes", exporter(export=in_order_of_parts), "two exports"),
        ("test_verify_accepts_its_own_files", halved, "differs by"),
        ("test_verify_accepts_its_own_files", exporter(verify=lambda *a: ()), "compared nothing"),
        ("test_verify_accepts_its_own_files", exporter(verify=lambda *a: (0.0,)), "which is no Check"),
        ("test_verify_accepts_its_own_files", exporter(verify=lambda *a: FINE[1:]), "outputs of the denoiser"),
        ("test_verify_accepts_its_own_files", exporter(verify=lambda *a: FINE[:1]), "no image was compared"),
        ("test_verify_accepts_its_own_files", exporter(verify=lambda *a: FINE * 2), "have one name"),
        ("test_verify_accepts_its_own_files", exporter(verify=lenient(float("inf"))), "has the limit inf"),
        ("test_verify_notices_another_edit", exporter(verify=satisfied), "was accepted"),
        ("test_verify_notices_another_edit", exporter(verify=compares_with_itself), "was accepted"),
        ("test_verify_notices_another_edit", exporter(verify=lenient(10.0)), "half strength was accepted"),
        ("test_verify_notices_another_edit", exporter(verify=greedy), "not finite was accepted"),
        ("test_verify_reads_the_files", exporter(verify=compares_with_itself), "was accepted"),
        ("test_verify_reads_the_files", exporter(verify=looks_at_the_size), "half of toy.safetensors"),
        ("test_other_kinds_are_right_or_refused", unmasked, "as something else"),
        ("test_other_kinds_are_right_or_refused", masked_and_blind, "counts as the plain one"),
        ("test_usage_is_python", exporter(usage=lambda *a: "load the file"), "no Python"),
        ("test_usage_is_python", exporter(usage=lambda *a: "# see the manual"), "does nothing"),
        ("test_usage_is_python", exporter(usage=lambda *a: "x = 1\n" * 20), "20 lines"),
        ("test_usage_is_python", exporter(usage=lambda self, files, base: f"load({str(files[0])!r})"), "this machine"),
        ("test_model_and_process_are_left_alone", exporter(export=sleepy), "other numbers"),
        ("test_model_and_process_are_left_alone", exporter(verify=adapter_left_on), "is another"),
        ("test_model_and_process_are_left_alone", exporter(verify=note_left_on), "attributes are left"),
        ("test_model_and_process_are_left_alone", exporter(verify=adapter_left_on_failure), "is another"),
        ("test_an_edit_of_nothing_is_refused", exporter(export=writes_anything), "DID NOT RAISE"),
        ("test_a_failing_export_leaves_nothing", exporter(export=writes_anything), "DID NOT RAISE"),
        ("test_a_failing_export_leaves_nothing", exporter(export=writes_too_early), "is left"),
    ]
]


class TestProofs(ProofTests):
    proofs = (Proof(kit.ExporterTests, BROKEN, shared=kit.PluginTests),)
