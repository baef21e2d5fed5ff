"""The model card that goes to the Hub with a pipeline."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

from ..file_writing import write_file
from .loading import find_variants

if TYPE_CHECKING:
    from .pipeline_cfld import CFLDPipeline

_PLACEHOLDER = "card has been automatically generated"


_card_before: ContextVar[str | None] = ContextVar("card_before", default=None)


class HubCardMixin(DiffusionPipeline):
    """A pipeline that goes to the Hub with a card of its own."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the pipeline as `DiffusionPipeline.save_pretrained` does.

        Args:
            save_directory: Folder. With `push_to_hub=True` a card that it has goes along, unless the repository has
                one already.
            *args: As there.
            **kwargs: As there, e.g. `variant`, `max_shard_size`, `push_to_hub`.
        """
        card = Path(save_directory) / "README.md"
        # diffusers writes its placeholder over it.
        token = _card_before.set(card.read_text(encoding="utf-8") if card.is_file() else None)
        try:
            super().save_pretrained(os.fspath(save_directory), *args, **kwargs)
        finally:
            _card_before.reset(token)

    def _upload_folder(self, working_dir: str, repo_id: str, **kwargs: Any) -> Any:
        # Both `push_to_hub` and `save_pretrained(push_to_hub=True)` end here, with the card of the repository or,
        # where there is none, diffusers' placeholder, whose snippet cannot load a third-party pipeline.
        replace_placeholder_card(self, working_dir, repo_id)
        return super()._upload_folder(working_dir, repo_id, **kwargs)


def replace_placeholder_card(pipe: CFLDPipeline, folder: str, repo_id: str) -> None:
    """Write a card in the place of diffusers' placeholder; any other card stays.

    It is the one that was there before diffusers saved, or that of the folder which the pipeline was loaded from, if
    these are of this package and so say whose the weights are.

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
    texts = [_card_before.get()]
    source = pipe.config.get("_name_or_path")
    if source and (Path(source) / "model_index.json").is_file() and (Path(source) / "README.md").is_file():
        texts.append((Path(source) / "README.md").read_text(encoding="utf-8"))
    for text in texts:
        if text is not None and "diffusers-cfld" in text and _PLACEHOLDER not in text:
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
