"""The model card that goes to the Hub with a pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..file_writing import write_file
from .loading import find_variants

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline

_PLACEHOLDER = "card has been automatically generated"


def replace_placeholder_card(pipe: CFLDPipeline, folder: str, repo_id: str) -> None:
    """Write a card in the place of diffusers' placeholder; any other card stays.

    It is that of the folder which the pipeline was loaded from, if that is one of this package and so says whose the
    weights are.

    Args:
        pipe: The pipeline.
        folder: Where it was saved.
        repo_id: Where it goes.

    Raises:
        OSError: A card cannot be read or written.
    """
    card = Path(folder) / "README.md"
    if not card.is_file() or _PLACEHOLDER not in card.read_text(encoding="utf-8"):
        return
    source = pipe.config.get("_name_or_path")
    former = Path(source) / "README.md" if source and (Path(source) / "model_index.json").is_file() else None
    text = former.read_text(encoding="utf-8") if former is not None and former.is_file() else _PLACEHOLDER
    if "diffusers-cfld" in text and _PLACEHOLDER not in text:
        text = re.sub(r'from_pretrained\("[^"]*"', lambda _: f'from_pretrained("{repo_id}"', text)
        write_file(card, text.encode())
        return
    from ..conversion.model_card import write_model_card

    variants = [variant for variant in find_variants(folder) if variant is not None]
    # Whose weights these are cannot be told here: no base model, no licence, no numbers of the paper.
    facts: dict[str, Any] = {"dtype": str(pipe.dtype).removeprefix("torch."), "base_model": None}
    facts["scheduler"] = type(pipe.scheduler).__name__
    facts["variant"] = min(variants, default=None)
    if pipe.source_encoder is not None:
        facts["source_size"] = pipe.source_encoder.image_size
    if pipe.unet is not None:
        facts["target_size"] = pipe.target_size
    if pipe.prompt_decoder is not None:
        facts["num_queries"] = pipe.prompt_decoder.config.num_queries
    write_model_card(folder, location=repo_id, **facts)
