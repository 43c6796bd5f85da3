"""Run the lines of model cards, each in its folder, and note what the pipelines then compute; started by the test.

Reads a JSON object: ``inputs`` (file), ``result`` (file), and ``cards``: name, folder and lines of each, in order.
Those that need vu come last: before them, nothing of it must have been imported.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")


@torch.no_grad()
def outputs(pipe: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the denoiser's predictions for the captions of the test."""
    tokens = pipe.tokenizer(
        ["a", "An image of cat."], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    embedding = pipe.text_encoder(tokens.input_ids)[0]
    return pipe.unet(inputs["noisy"], inputs["timesteps"], embedding, return_dict=False)[0]


def main() -> None:
    asked = json.loads(sys.stdin.read())
    inputs = load_file(asked["inputs"])
    found: dict[str, torch.Tensor] = {}
    for card in asked["cards"]:
        os.chdir(card["folder"])
        names: dict[str, Any] = {}
        exec(compile(card["lines"], card["name"], "exec"), names)
        found[card["name"]] = outputs(names["pipe"], inputs).contiguous()
        if "image" in names:
            pixels = torch.tensor(list(names["image"].tobytes()), dtype=torch.uint8)
            found[f"{card['name']}.image"] = pixels
        if not any(name.partition(".")[0].startswith("vu_") for name in sys.modules):
            found[f"{card['name']}.plain"] = torch.ones(1)
    save_file(found, asked["result"])


main()
