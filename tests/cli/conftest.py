"""Most commands load the same folder."""

import io

import pytest
import torch

from diffusers_cfld import CFLDPipeline

_loaded = {}


@pytest.fixture(autouse=True)
def load_each_folder_once(monkeypatch):
    """The first command reads the files; those that follow get a copy of what it read."""
    load = CFLDPipeline.from_pretrained

    def load_or_copy(folder, **options):
        key = (str(folder), str(options))
        if key not in _loaded:
            buffer = io.BytesIO()
            torch.save(load(folder, **options), buffer)
            _loaded[key] = buffer.getvalue()
        return torch.load(io.BytesIO(_loaded[key]), weights_only=False)

    monkeypatch.setattr(CFLDPipeline, "from_pretrained", load_or_copy)
