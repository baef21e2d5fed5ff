"""Maps of the pictures that features of the U-Net are to agree with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MAPS_FILE, _NAMES_FILE = "maps.npy", "names.json"
_NUM_MEASURED = 1000


class AlignmentMaps:
    """What is known of each picture, cell by cell, standardised: features of another encoder, parts, coordinates.

    A folder holds them as `maps.npy`, (N, K, h, w), and `names.json`, the N pictures' files relative to the data's
    folder. The file is memory-mapped.

    Args:
        folder: Where the two files are.
        root: The data's folder.

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: They do not belong together, or the maps are not 4-D.
    """

    def __init__(self, folder: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
        files = [Path(folder) / name for name in (_MAPS_FILE, _NAMES_FILE)]
        for file in files:
            if not file.exists():
                raise FileNotFoundError(
                    f"{str(folder)!r} must hold {_MAPS_FILE} and {_NAMES_FILE}, but has no {file.name}."
                )
        self.root = os.path.abspath(root)
        self._maps: np.ndarray[Any, Any] = np.load(files[0], mmap_mode="r")
        names = json.loads(files[1].read_text())
        if self._maps.ndim != 4 or len(names) != len(self._maps) or not names:
            raise ValueError(
                f"{str(files[0])!r} must have shape (N, K, h, w) with one entry per name of {_NAMES_FILE}, got "
                f"{self._maps.shape} for {len(names)} names."
            )
        self._rows = {os.path.normpath(name): row for row, name in enumerate(names)}
        some = np.asarray(self._maps[:: -(-len(names) // _NUM_MEASURED)], dtype=np.float32)
        mean, spread = some.mean((0, 2, 3)), some.std((0, 2, 3))
        # A map that is the same everywhere says nothing.
        scale = np.where(spread > 1e-4, 1 / np.maximum(spread, 1e-4), 0)
        self._mean, self._scale = (torch.from_numpy(value)[:, None, None].float() for value in (mean, scale))

    @property
    def num_maps(self) -> int:
        """K."""
        return int(self._maps.shape[1])

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Look up pictures.

        Args:
            names: B paths of pictures in `root`.

        Returns:
            (B, K, h, w) float32, on the CPU; each map has mean 0 and variance 1 over all pictures.

        Raises:
            ValueError: A picture has no maps.
        """
        rows = []
        for name in names:
            relative = os.path.relpath(name, self.root)
            if relative not in self._rows:
                raise ValueError(f"{_NAMES_FILE} does not name the picture {relative!r}: write maps of all pictures.")
            rows.append(self._rows[relative])
        return (torch.from_numpy(self._maps[rows]).float() - self._mean) * self._scale
