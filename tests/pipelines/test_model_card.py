from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from diffusers_cfld import __version__
from diffusers_cfld.conversion.weights_io import SourceFile
from diffusers_cfld.pipelines.model_card import write_model_card


def test_card_of_a_conversion(tmp_path: Path) -> None:
    path = write_model_card(tmp_path, source_files=[SourceFile("a.bin", 1234, "f" * 64)], dtype="float16")
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert path.name == "README.md"
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "image-to-image"
    assert data["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert {"diffusers", "diffusers-cfld", "pose-transfer"} <= set(data["tags"])
    assert data["license"]
    for text in (
        "from diffusers_cfld import CFLDPipeline",
        "CFLDPipeline.from_pretrained(",
        "CreativeML OpenRAIL-M",
        "MIT",
        "research only",
        "non-commercial",
        "| `a.bin` | 1,234 | `" + "f" * 64,
        __version__,
        "OpenPose",
        "256x256",
        "512x512",
        "## Intended use",
        "likeness",
        "Not measured with this conversion",
        "do not give the paper's table",
        "@inproceedings{lu2024coarse,",
        "float16",
    ):
        assert text in card.text, text


def test_card_of_own_weights_names_no_source(tmp_path: Path) -> None:
    text = write_model_card(tmp_path, location="me/mine", variant="fp16").read_text()
    assert "## Source" not in text
    assert "published checkpoint" not in text
    assert 'from_pretrained("me/mine", variant="fp16", dtype=' in text
    assert "guidance_scale=2.0, output_size=(512, 352))" in text
    assert "people come out stretched" in text


@pytest.mark.parametrize("shapes", [{"image_shape": None}, {"target_size": (128, 88)}])
def test_a_card_asks_for_no_other_shape_where_nothing_is_squashed(tmp_path, shapes):
    text = write_model_card(tmp_path, base_model=None, **shapes).read_text()
    assert "guidance_scale=2.0).images[0]" in text
    assert "stretched" not in text


def test_a_model_of_another_geometry_claims_nothing_of_stable_diffusion_or_deepfashion(tmp_path):
    card = ModelCard.load(write_model_card(tmp_path, base_model=None, target_size=(128, 96)))
    assert card.data.base_model is None
    assert card.data.license is None
    assert "128x96" in card.text
    for claim in ("Stable Diffusion", "DeepFashion", "FID"):
        assert claim not in card.text
    assert "Not written yet" in card.text
    assert "The scheduler is" not in card.text
    assert "`DDIMScheduler`" in write_model_card(tmp_path, base_model=None, scheduler="DDIMScheduler").read_text()
    assert "consent" in card.text
