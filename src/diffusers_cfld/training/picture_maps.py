"""What is known of each training picture, cell by cell, from files."""

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


class PictureMaps:
    """Maps of pictures.

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
        self._file = files[0]
        self._maps: np.ndarray[Any, Any] = np.load(files[0], mmap_mode="r")
        names = json.loads(files[1].read_text())
        if self._maps.ndim != 4 or len(names) != len(self._maps) or not names:
            raise ValueError(
                f"{str(files[0])!r} must have shape (N, K, h, w) with one entry per name of {_NAMES_FILE}, got "
                f"{self._maps.shape} for {len(names)} names."
            )
        self._rows = {os.path.normpath(name): row for row, name in enumerate(names)}

    @property
    def num_maps(self) -> int:
        """K."""
        return int(self._maps.shape[1])

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Look up pictures.

        Args:
            names: B paths of pictures in `root`.

        Returns:
            (B, K, h, w) float32, on the CPU.

        Raises:
            ValueError: A picture has no maps.
        """
        return torch.from_numpy(self._maps[self.find_rows(names)]).float()

    def find_rows(self, names: Sequence[str]) -> list[int]:
        """Tell where the maps of pictures are, without reading them.

        Args:
            names: B paths of pictures in `root`.

        Returns:
            B rows of the file.

        Raises:
            ValueError: A picture has no maps.
        """
        rows = []
        for name in names:
            relative = os.path.relpath(name, self.root)
            if relative not in self._rows:
                raise ValueError(
                    f"{str(self._file.with_name(_NAMES_FILE))!r} does not name the picture {relative!r}: write "
                    "maps of all pictures."
                )
            rows.append(self._rows[relative])
        return rows

    def _some(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Those of up to 1,000 pictures from all over the file, to measure."""
        return np.asarray(self._maps[:: -(-len(self._maps) // _NUM_MEASURED)], dtype=np.float32)


class AlignmentMaps(PictureMaps):
    """Maps that features of the U-Net are to agree with, standardised: another encoder's features, parts, coordinates.

    Args:
        folder: As [`PictureMaps`].
        root: As [`PictureMaps`].

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: They do not belong together, or the maps are not 4-D.
    """

    def __init__(self, folder: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
        super().__init__(folder, root)
        some = self._some()
        mean, spread = some.mean((0, 2, 3)), some.std((0, 2, 3))
        # A map that is the same everywhere says nothing.
        scale = np.where(spread > 1e-4, 1 / np.maximum(spread, 1e-4), 0)
        self._mean, self._scale = (torch.from_numpy(value)[:, None, None].float() for value in (mean, scale))

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Look up pictures.

        Args:
            names: B paths of pictures in `root`.

        Returns:
            (B, K, h, w) float32, on the CPU; each map has mean 0 and variance 1 over all pictures.

        Raises:
            ValueError: A picture has no maps.
        """
        return (super().__call__(names) - self._mean) * self._scale


class LossWeightMaps(PictureMaps):
    """How much each cell of the latents counts in the loss, e.g. more where hands, faces or garments are.

    Args:
        folder: As [`PictureMaps`], with K = 1 and numbers >= 0.
        root: As [`PictureMaps`].

    Raises:
        FileNotFoundError: One of the files is missing.
        ValueError: They do not belong together, or the maps are not (N, 1, h, w), finite and >= 0 with some above 0.
    """

    def __init__(self, folder: str | os.PathLike[str], root: str | os.PathLike[str]) -> None:
        super().__init__(folder, root)
        some = self._some()
        if self.num_maps != 1 or not np.isfinite(some).all() or some.min() < 0 or not some.any():
            raise ValueError(
                f"{str(self._file)!r} must have shape (N, 1, h, w) and hold finite numbers >= 0, not all 0, got "
                f"{self._maps.shape} from {some.min():g} to {some.max():g}."
            )
        self._mean = float(some.mean())

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Look up pictures.

        Args:
            names: B paths of pictures in `root`.

        Returns:
            (B, 1, h, w) float32, on the CPU, >= 0, with mean 1 over all pictures.

        Raises:
            ValueError: A picture has no maps.
        """
        return super().__call__(names) / self._mean
