"""What the models of CFLD share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from ..io_utils import prepare_saving


class CFLDModelMixin(ModelMixin):
    """diffusers' `ModelMixin`, which can also save over an earlier model in shards or in another format."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model.

        Args:
            save_directory: Folder of the model.
            *args: Passed on to `ModelMixin.save_pretrained`.
            safe_serialization: Write safetensors files.
            variant: Variant in the names of the weights' files, for example `"fp16"`.
            max_shard_size: Split larger weights into files of this size; None for diffusers' default.
            **kwargs: Passed on to `ModelMixin.save_pretrained`.
        """
        options: dict[str, Any] = {"safe_serialization": safe_serialization, "variant": variant}
        if max_shard_size is not None:
            options["max_shard_size"] = max_shard_size
        prepare_saving(self, Path(save_directory), **options)
        super().save_pretrained(save_directory, *args, **options, **kwargs)
