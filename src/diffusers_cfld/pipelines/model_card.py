"""The model card of a pipeline: what the weights are, where they come from and what they may be used for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .._version import __version__

_TEMPLATE = Path(__file__).with_name("model_card_template.md")


def make_model_card(
    pipe: Any,
    location: str,
    *,
    base_model: str | None = None,
    variant: str | None = None,
    source_files: Mapping[str, str] | None = None,
) -> str:
    """Write the model card of a pipeline.

    Args:
        pipe: The `CFLDPipeline`.
        location: Where `from_pretrained` loads it from: a Hub id or a folder.
        base_model: Hub id of the Stable Diffusion 1.5 that the authors' published weights were trained from. The card
            then states what is known about these weights; with `None` it makes no claims about data, licences and
            quality.
        variant: Variant of the saved weights.
        source_files: SHA-256 of each converted file by name, if the weights were converted.

    Returns:
        The text of the card, with its YAML front matter.
    """
    of_base: dict[str, Any] = {
        "base_model": base_model,
        "license": "other",
        "license_name": "creativeml-openrail-m-non-commercial",
        "license_link": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    }
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers", "diffusers-cfld", "pose-transfer", *(["stable-diffusion"] if base_model else [])],
        **(of_base if base_model else {}),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        version=__version__,
        location=location,
        variant=variant,
        base_model=base_model,
        source_files=source_files,
        source_size=pipe.source_encoder.image_size if pipe.source_encoder is not None else None,
        target_size=pipe.target_size if pipe.unet is not None else None,
        output_size=pipe.default_output_size,
        num_queries=pipe.prompt_decoder.config.num_queries if pipe.prompt_decoder is not None else None,
        dtype=str(pipe.dtype).removeprefix("torch."),
        scheduler=type(pipe.scheduler).__name__,
    )
    return f"{card.content}\n"
