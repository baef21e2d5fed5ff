"""The model card that goes to the Hub with a pipeline."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

from ..io_utils import write_file
from .loading import find_only_variants
from .model_card import make_model_card

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
        # diffusers writes its placeholder over a card that is there.
        token = _card_before.set(_read_card(Path(save_directory)) if kwargs.get("push_to_hub") else None)
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
    that is one of this package and so says whose the weights are.

    Args:
        pipe: The pipeline.
        folder: Where it was saved.
        repo_id: Where it goes.

    Raises:
        OSError: A card cannot be read or written.
    """
    if _PLACEHOLDER not in (_read_card(Path(folder)) or ""):
        return
    variant = next(iter(find_only_variants(folder)), None)
    dtype = str(pipe.dtype).removeprefix("torch.")
    card = Path(folder) / "README.md"
    texts = [_card_before.get()]
    source = pipe.config.get("_name_or_path")
    if source and (Path(source) / "model_index.json").is_file():
        former = _read_card(Path(source))
        # That of another package does not tell how to load what is saved now.
        texts.append(former if former is not None and "diffusers-cfld" in former else None)
    for text in texts:
        if text is not None and _PLACEHOLDER not in text:
            write_file(card, _adapt(text, repo_id, variant, dtype).encode())
            return
    # Whose weights these are cannot be told here: no base model, no licence, no numbers of the paper.
    write_file(card, make_model_card(pipe, repo_id, variant=variant).encode())


def _read_card(folder: Path) -> str | None:
    """A folder's card; None if it has none, or one that is no text in UTF-8."""
    file = folder / "README.md"
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError:
        return None


def _adapt(card: str, repo_id: str, variant: str | None, dtype: str) -> str:
    """Let a card say how to load the weights from where they go, and in what precision they are; no other loading."""
    option = f', variant="{variant}"' if variant else ""

    def call(match: re.Match[str]) -> str:
        rest = re.sub(r""",\s*variant=(["'])[^"'\n]*\1""", "", match[3])
        return f'{match[1]}"{repo_id}"{option}{rest})'

    card = re.sub(
        r"""(\bCFLD\w*Pipeline\.from_pretrained\()\s*(["'])[^"'\n]*\2((?:[^()]|\([^()]*\))*)\)""", call, card
    )
    return re.sub(r"(?m)^(- \*\*Weights:\*\* )\w+\.", lambda match: f"{match[1]}{dtype}.", card)
