"""Load exports with plain diffusers and write down what the model then computes; started by the tests.

Reads one JSON object per line (model, variant, dtype, inputs, result, and what is loaded besides: lora with its name,
or peft), answers one line each.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")


def answer(asked: dict[str, str]) -> str:
    from diffusers import StableDiffusionPipeline

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[asked["dtype"]]
    pipeline = StableDiffusionPipeline.from_pretrained(
        asked["model"], variant=asked["variant"] or None, torch_dtype=dtype, local_files_only=True
    )
    if "lora" in asked:
        pipeline.load_lora_weights(asked["lora"], weight_name=asked.get("weight_name"))
    if "peft" in asked:
        from peft import PeftModel

        PeftModel.from_pretrained(pipeline.unet, asked["peft"])
    inputs = load_file(asked["inputs"])
    with torch.no_grad():
        ids = pipeline.tokenizer(["a", "An image of cat."], padding="max_length", max_length=77, return_tensors="pt")
        words = pipeline.text_encoder(ids.input_ids)[0]
        out = pipeline.unet(inputs["noisy"].to(dtype), inputs["timesteps"], words).sample.float()
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        ["a cat"],
        generator=[torch.Generator().manual_seed(5)],
        num_inference_steps=2,
        guidance_scale=2.0,
        output_type="pt",
    ).images
    save_file({"out": out.contiguous(), "image": image.float().contiguous()}, asked["result"])
    return "done" if not any(name.startswith("vu") for name in sys.modules) else "vu was imported"


for line in sys.stdin:
    sys.stdout.write(answer(json.loads(line)) + "\n")
    sys.stdout.flush()
