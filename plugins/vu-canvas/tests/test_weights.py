"""What the package ships: a judge that knows renders, a pipeline that plain diffusers loads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vu_canvas.judge import Judge, load_judge
from vu_canvas.render import OBJECTS, STYLES, prompt
from vu_canvas.training.check import generate_pairs, judge_images, load_shipped
from vu_canvas.training.data import Renders, draw
from vu_canvas.training.export import WEIGHTS, size_of
from vu_canvas.training.vae import reconstruct


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_shipped(WEIGHTS)


def test_size() -> None:
    assert size_of(WEIGHTS / "diffusion") + (WEIGHTS / "judge.safetensors").stat().st_size <= 15_000_000


def test_all_tensors_are_half_precision_or_counters() -> None:
    for path in WEIGHTS.rglob("*.safetensors"):
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                dtype = tensors.get_tensor(name).dtype
                assert dtype == torch.float16 or not dtype.is_floating_point, (path, name)


def test_folder_is_a_stable_diffusion_pipeline() -> None:
    index = json.loads((WEIGHTS / "diffusion" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]


def test_no_file_names_a_folder_of_the_machine() -> None:
    for path in WEIGHTS.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not [place for place in ("/work", "/home", "/tmp") if place in text], path


def test_every_word_is_one_token(pipeline: Any) -> None:
    for word in OBJECTS:
        for style in STYLES:
            ids = pipeline.tokenizer(prompt(word, style)).input_ids
            assert len(ids) == 9
    assert pipeline.tokenizer.model_max_length == 16


def test_unknown_words_fall_back_to_letters(pipeline: Any) -> None:
    ids = pipeline.tokenizer("zebra").input_ids
    assert pipeline.tokenizer.unk_token_id not in ids[1:-1]
    assert len(ids) > 3


def test_judge_names_renders(judge: Judge) -> None:
    answer = judge_images(judge, "renders", draw("held-out", 10, first=500_000))
    for kind in ("object", "style"):
        right, count = answer.head(kind)
        assert right >= 0.995 * count


def test_judge_names_reconstructions(judge: Judge, pipeline: Any) -> None:
    renders = draw("held-out", 3, first=500_000)
    again = Renders(reconstruct(pipeline.vae, renders.images), renders.objects, renders.styles)
    answer = judge_images(judge, "reconstructions", again)
    for kind in ("object", "style"):
        right, count = answer.head(kind)
        assert right >= 0.98 * count


def test_judge_reads_bytes_and_floats_alike(judge: Judge) -> None:
    images = draw("validation", 1).images
    floats = images.permute(0, 3, 1, 2).float() / 255
    for one, other in zip(judge.classify(images), judge.classify(floats), strict=True):
        assert torch.equal(one, other)


def test_judge_refuses_another_shape(judge: Judge) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        judge.classify(torch.zeros(2, 3, 32, 32))


@pytest.mark.slow
def test_generated_images_show_what_was_asked_for(judge: Judge, pipeline: Any) -> None:
    answer = judge_images(judge, "generated", generate_pairs(pipeline, 1, first_seed=9_000))
    for kind in ("object", "style"):
        right, count = answer.head(kind)
        assert right >= 0.93 * count


def test_an_image_does_not_depend_on_its_batch(pipeline: Any) -> None:
    from vu_canvas.training.check import generate

    prompts = [prompt("star", "neon"), prompt("moon", "dots"), prompt("ring", "flat")]
    together = generate(pipeline, prompts, [1, 2, 3])
    alone = generate(pipeline, prompts[1:2], [2])
    assert (together[1].int() - alone[0].int()).abs().max() <= 2


def test_plain_diffusers_loads_it_without_this_package(tmp_path: Path) -> None:
    code = (
        "import sys; from diffusers import StableDiffusionPipeline as P;"
        f"p = P.from_pretrained({str(WEIGHTS / 'diffusion')!r}, local_files_only=True);"
        "i = p('A star image in neon style.', num_inference_steps=2, output_type='np').images;"
        "print(i.shape, p.scheduler.config.prediction_type, any(m.startswith('vu_') for m in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert answer.stdout.splitlines()[-1] == "(1, 64, 64, 3) v_prediction False"
