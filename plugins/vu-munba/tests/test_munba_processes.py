"""Two processes that share a batch bargain about the same gradients as one process with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import attrs
import torch
from safetensors.torch import load_file, save_file

from vu_core.adapters import Full, FullConfig
from vu_core.testing.toy_denoiser import ToyDenoiser, toy_data
from vu_core.testing.toys import toy_run
from vu_core.training import Training, fit
from vu_munba.bargain import BargainConfig
from vu_munba.munba import Munba

TRAINING = Training(steps=3, lr=0.01, batch_size=2)


def train(folder, training):
    """Return the change of every weight, and the cosines that were told."""
    model, told = ToyDenoiser(), []
    axes = {"weighting": Munba(BargainConfig()), "parameters": Full(FullConfig())}
    run = toy_run(folder, training=training, emit_event=told.append, **axes)
    theta = run.parameterise(model)

    def loss(batch):
        start = torch.zeros(len(batch), dtype=torch.long)
        return model.predict(model.latents(batch), start, model.embed(batch.captions)).square().mean()

    fit(theta, lambda batches: {side: loss(batch) for side, batch in batches.items()}, toy_data(), run)
    changed = {name: delta.detach().clone() for name, delta in theta.named_deltas()}
    return changed, [event.values["cos_rf"] for event in told if event.type == "gradient_conflict"]


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
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
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)], env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    one, cosines = train(tmp_path / "one", attrs.evolve(TRAINING, batch_size=4))
    two = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    assert len(cosines) == TRAINING.steps
    assert any(delta.any() for delta in one.values())
    for name, delta in one.items():
        assert torch.equal(two[0][name], two[1][name])
        torch.testing.assert_close(two[0][name], delta, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    changed, _ = train(out / "two", TRAINING)
    save_file(changed, out / f"{os.environ['RANK']}.safetensors")
    torch.distributed.destroy_process_group()  # a group that is alive at exit now and then aborts the process
