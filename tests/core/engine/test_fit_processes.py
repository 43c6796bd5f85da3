"""Two processes that share a batch train what one process trains with the whole of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from engine_toys import Pull, toy_data, toy_losses, toy_model, toy_run
from safetensors.torch import load_file, save_file

from vu_core.training import Training, fit, processes
from vu_core.weightings import Simple, SimpleConfig

TRAINING = Training(steps=5, lr=0.02, batch_size=2, accumulation=2)
CASES = [((9, 8), "cycle"), ((5, 8), "cycle"), ((3, 14), "retain_only")]
"""Numbers of forget and retain examples, and what happens when the forget ones are through."""


@attrs.define
class Opposed:
    """A rule that needs both gradients: the norms decide."""

    linear = False

    def coefficients(self, gram, losses, state):
        return 1.0, (gram[0, 0] / gram[1, 1].clamp(min=1e-12)).sqrt().clamp(max=2.0)


WEIGHTINGS = {"linear": lambda: Simple(SimpleConfig(forget_weight=0.3)), "gram": Opposed}


def train(folder, weighting, training, sizes=(9, 8)):
    events = []
    model = toy_model()
    axes = {"weighting": WEIGHTINGS[weighting](), "regularizers": (Pull("retain"), Pull("outside", 2.0))}
    run = toy_run(folder, training=training, emit_event=events.append, **axes)
    theta = run.parameterise(model)
    fit(theta, toy_losses(model), toy_data(*sizes), run)
    return {name: tensor.clone() for name, tensor in theta.state().items()}, events


def losses_told(events):
    """Of which sides each step told."""
    told = [event.values for event in events if event.type == "progress"]
    return [sorted(key for key in values if key.startswith("loss_")) for values in told]


def child(folder, sizes, exhausted):
    """Run in one of two processes of a gloo group."""
    rank = int(os.environ["RANK"])
    for weighting in WEIGHTINGS:
        state, events = train(folder / weighting, weighting, attrs.evolve(TRAINING, exhausted=exhausted), sizes)
        (folder / f"{weighting}-{rank}.json").write_text(json.dumps(losses_told(events)))
        save_file(state, folder / f"{weighting}-{rank}.safetensors")
        told = {event.type for event in events}
        if told != (
            {"progress", "checkpoint"} | ({"gradient_conflict"} if weighting == "gram" else set())
            if rank == 0
            else set()
        ):
            raise SystemExit(f"process {rank} told {told}")


@pytest.mark.parametrize(("sizes", "exhausted"), CASES)
def test_two_processes_equal_one_with_the_doubled_batch(sizes, exhausted, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, str(tmp_path), *map(str, sizes), exhausted]
    children = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    assert [process.wait(timeout=600) for process in children] == [0, 0]
    for weighting in WEIGHTINGS:
        training = attrs.evolve(TRAINING, batch_size=4, exhausted=exhausted)
        one, events = train(tmp_path / "one" / weighting, weighting, training, sizes)
        told = losses_told(events)
        assert json.loads((tmp_path / f"{weighting}-0.json").read_text()) == told
        assert told[1:] == [["loss_retain"] if exhausted == "retain_only" else ["loss_forget", "loss_retain"]] * 4
        two = [load_file(tmp_path / f"{weighting}-{rank}.safetensors") for rank in range(2)]
        assert all(torch.equal(two[0][name], two[1][name]) for name in one)
        for name in one:
            torch.testing.assert_close(two[0][name], one[name], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    child(Path(sys.argv[1]), tuple(map(int, sys.argv[2:4])), sys.argv[4])
    torch.distributed.destroy_process_group()  # a group that is alive at exit now and then aborts the process


def test_gradients_are_never_joined_into_one_long_vector(monkeypatch):
    """Small tensors travel together, a large one is added up where it lies; here the other process has the same."""
    monkeypatch.setattr(processes, "_BUCKET", 10)
    sent = []

    def all_reduce(tensor):
        sent.append((tensor.numel(), tensor.data_ptr()))
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shapes = [(2, 3), (4,), (5, 5), (1,), (3, 4), ()]
    tensors = [torch.rand(shape) for shape in shapes]
    tensors[4] = tensors[4].T  # not contiguous
    before = [tensor.clone() for tensor in tensors]
    processes.Processes(count=2).add_up(tensors)
    assert all(torch.equal(tensor, 2 * was) for tensor, was in zip(tensors, before, strict=True))
    assert [size for size, _ in sent] == [10, 25, 1, 12, 1]
    assert sent[1][1] == tensors[2].data_ptr(), "a large tensor was copied"
