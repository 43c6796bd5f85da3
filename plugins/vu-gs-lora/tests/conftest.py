"""Where the tests of this folder find their toys, and a run with everything that the methods want."""

import sys
from pathlib import Path

import attrs
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def unlearn(tmp_path):
    """Run a method on a toy transformer and toy images: ``(edit, model, data)``."""
    from toy_transformer import ToyTransformer, toy_tables

    from vu_core.adapters import Lora, LoraConfig
    from vu_core.testing import toy_run
    from vu_core.training import Training

    count = iter(range(1000))

    def make(method, *, model=None, data=None, **fields):
        names = {field.name for field in attrs.fields(method.Config)}
        settings = {name: fields.pop(name) for name in list(fields) if name in names}
        settings = {"training": Training(steps=2, batch_size=2, lr=1e-2), **settings}
        lora = Lora(LoraConfig(rank=2, alpha=1.0, init="kaiming", targets=()))
        axes = {"training": settings["training"], "parameters": lora, **fields}
        run = toy_run(tmp_path / f"unlearn{next(count)}", **axes)
        model = model or ToyTransformer()
        data = data or toy_tables(run)
        try:
            return method(method.Config(**settings)).unlearn(model, data, run), model, data
        finally:
            run.release()

    return make
