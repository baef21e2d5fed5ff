"""What the models of CFLD share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from ..io_utils import prepare_saving


class CFLDModelMixin(ModelMixin):
    """diffusers' `ModelMixin`, which can also save over an earlier model in shards or in another format."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the model.

        Args:
            save_directory: Folder of the model.
            *args: Passed on to `ModelMixin.save_pretrained`.
            **kwargs: Likewise, for example `variant` and `max_shard_size`.
        """
        names = ("safe_serialization", "variant", "max_shard_size")
        prepare_saving(self, Path(save_directory), **{name: kwargs[name] for name in names if name in kwargs})
        super().save_pretrained(save_directory, *args, **kwargs)
