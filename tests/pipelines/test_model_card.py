"""The card says what is known of the weights, and how to load and call the pipeline."""

from huggingface_hub import ModelCard
from testing_utils import tiny_components, tiny_pipeline

from diffusers_cfld import CFLDPipeline, __version__
from diffusers_cfld.pipelines.model_card import make_model_card

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_card_of_a_conversion_names_files_base_and_licences():
    text = make_model_card(
        tiny_pipeline(), "me/mine", base_model=STABLE_DIFFUSION, variant="fp16", source_files={"a.bin": "f" * 64}
    )
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "image-to-image"
    assert data["base_model"] == STABLE_DIFFUSION
    assert {"diffusers", "diffusers-cfld", "pose-transfer"} <= set(data["tags"])
    assert data["license"]
    for part in (
        'CFLDPipeline.from_pretrained("me/mine", variant="fp16", dtype=',
        "CreativeML OpenRAIL-M",
        "MIT",
        "research only",
        "non-commercial",
        "| `a.bin` | `" + "f" * 64,
        __version__,
        "OpenPose",
        "resized to 64x64",
        "128x128 pixels and resized to 128x88",
        "prompt of 4 tokens",
        "guidance_scale=2.0).images[0]",
        "## Intended use",
        "consent",
        "Not measured with this conversion",
        "do not reproduce the paper's table",
        "@inproceedings{lu2024coarse,",
        "float32",
        "`DDPMScheduler`",
    ):
        assert part in card.text, part


def test_the_card_of_other_weights_claims_nothing_about_data_and_quality():
    text = make_model_card(tiny_pipeline(), "me/mine")
    data = ModelCard(text).data
    assert data.base_model is None
    assert data.license is None
    for claim in ("Stable Diffusion", "DeepFashion", "FID", "## Source"):
        assert claim not in text
    assert "Not written yet" in text
    assert "consent" in text


def test_the_card_names_no_other_shape_where_the_training_images_had_several():
    pipe = CFLDPipeline(**tiny_components(), frame_height=None, frame_width=None)
    assert "and resized to" not in make_model_card(pipe, "me/mine")
