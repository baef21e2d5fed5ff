"""The autoencoder's posteriors of all pictures, computed once.

The VAE is frozen and the pictures are not augmented, so that encoding them in every step, as the published training
does, repeats work. The moments are kept, not a sample: each step still draws its own latents.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..io_utils import write_file

_MOMENTS_FILE, _STATE_FILE, _SIZES_FILE = "moments.npy", "moments.json", "sizes.npy"
_MISSING = -1  # in the place of a size


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, pixel_values: torch.Tensor, slice_size: int = 8) -> torch.Tensor:
    """Encode pictures, some at a time: at 512x512 each takes a third of a gigabyte meanwhile.

    Args:
        vae: The autoencoder.
        pixel_values: (B, 3, H, W), [-1, 1].
        slice_size: How many at a time, >= 1.

    Returns:
        (B, 2C, h, w): the posterior's mean and the logarithm of its variance, not scaled.
    """
    pixel_values = pixel_values.to(vae.device, vae.dtype)
    slices = [pixel_values[first : first + slice_size] for first in range(0, len(pixel_values), slice_size)]
    return torch.cat([vae.encode(pictures).latent_dist.parameters for pictures in slices])


def sample_latents(vae: AutoencoderKL, moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw latents from posteriors.

    Args:
        vae: The autoencoder, for its scaling factor.
        moments: (B, 2C, h, w), from [`encode_moments`].
        noise: (B, C, h, w), standard normal.

    Returns:
        (B, C, h, w), scaled as the U-Net takes them.
    """
    posterior = DiagonalGaussianDistribution(moments)
    scaling_factor: float = vae.config.scaling_factor
    latents: torch.Tensor = (posterior.mean + posterior.std * noise.to(moments)) * scaling_factor
    return latents


class LatentCache:
    """Moments of the posteriors by picture, in a memory-mapped file.

    Args:
        folder: Where the file is or will be.
        names: Of the pictures' files, in the order of the rows.
        vae: The autoencoder; a cache that another one made is not used.
        image_size: (height, width) at which the pictures are encoded, pixels.

    Raises:
        ValueError: The folder holds the cache of other pictures, sizes or weights.
    """

    def __init__(
        self, folder: str | os.PathLike[str], names: Sequence[str], vae: AutoencoderKL, image_size: tuple[int, int]
    ) -> None:
        self.folder = Path(folder)
        self.vae = vae
        self.rows = {name: row for row, name in enumerate(names)}
        height, width = image_size
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (len(names), 2 * vae.config.latent_channels, height // factor, width // factor)
        self._key = {
            "shape": list(shape),
            "dtype": "float32",
            # By name alone, since the folder may be elsewhere now; their sizes are compared row by row.
            "pictures": _digest([os.path.basename(name) for name in names]),
            "vae": digest_weights(vae.state_dict()),
        }
        self.num_encoded = 0
        self.unreadable: dict[str, str] = {}
        self._claim(list(names))
        file = self.folder / _MOMENTS_FILE
        self._moments: np.memmap[Any, np.dtype[np.float32]] = (
            np.lib.format.open_memmap(file, mode="r+")
            if file.exists()
            else np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, moments: torch.Tensor, unreadable: Mapping[str, str] | None = None) -> None:
        """Store the next pictures' moments; they count as encoded once they are on the disk.

        Args:
            moments: (B, 2C, h, w), those of the rows from `num_encoded` on.
            unreadable: Names among these whose picture could not be read, so that their row means nothing, each with
                the reason; kept in `unreadable`.
        """
        stop = self.num_encoded + moments.shape[0]
        self._moments[self.num_encoded : stop] = moments.float().cpu().numpy()
        self._moments.flush()
        # Some may have come since they were measured.
        self._note_sizes(list(islice(self.rows, self.num_encoded, stop)))
        self.num_encoded = stop
        self.unreadable.update(unreadable or {})
        self._write_state()

    def mend(self, name: str, moments: torch.Tensor) -> None:
        """Store a picture that could not be read when its turn came.

        Args:
            name: One of `unreadable`, which loses it.
            moments: (1, 2C, h, w).

        Raises:
            KeyError: It is not one of them.
        """
        if name not in self.unreadable:
            raise KeyError(name)
        row = self.rows[name]
        self._moments[row] = moments[0].float().cpu().numpy()
        self._moments.flush()
        self._note_sizes([name])
        del self.unreadable[name]
        self._write_state()

    def __call__(self, names: Sequence[str]) -> torch.Tensor:
        """Look up pictures.

        Args:
            names: B of the names.

        Returns:
            (B, 2C, h, w) float32, on the CPU.

        Raises:
            KeyError: A picture is not in the cache.
        """
        return torch.from_numpy(self._moments[[self.rows[name] for name in names]])

    def _claim(self, names: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state, self._sizes = self.folder / _STATE_FILE, _measure(names)
        if not state.exists():
            (self.folder / _MOMENTS_FILE).unlink(missing_ok=True)
            self._write_sizes()
            # Before the rows: another run that begins now shares the file instead of making its own in its place.
            self._write_state()
            return
        found = json.loads(state.read_text())
        self.num_encoded, unreadable = found.pop("num_encoded"), found.pop("unreadable")
        has_rows = (self.folder / _MOMENTS_FILE).exists() or not self.num_encoded
        has_sizes = (self.folder / _SIZES_FILE).exists()
        is_ours = found == self._key and has_rows and has_sizes and all(row.isdigit() for row in unreadable)
        if not is_ours or self._has_changed([int(row) for row in unreadable]):
            raise ValueError(
                f"{str(self.folder)!r} caches the latents of other pictures, of another size or from another VAE, has "
                "lost a file, or was written by another version: delete it or name another folder."
            )
        # By row, since the names may have another folder now.
        self.unreadable = {names[int(row)]: reason for row, reason in unreadable.items()}
        if self.num_encoded < len(names):
            self._write_sizes()

    def _has_changed(self, unreadable: list[int]) -> bool:
        """Whether other pictures than those encoded have the names now; takes in the sizes that are known of these."""
        known, now = np.load(self.folder / _SIZES_FILE)[: self.num_encoded], self._sizes[: self.num_encoded]
        # A picture that is away keeps its row; one that could not be read may be another file by now.
        is_changed = (known != now) & (known != _MISSING) & (now != _MISSING)
        is_changed[unreadable] = False
        self._sizes[: self.num_encoded] = known
        return bool(is_changed.any())

    def _note_sizes(self, names: list[str]) -> None:
        rows, sizes = [self.rows[name] for name in names], _measure(names)
        if (self._sizes[rows] != sizes).any():
            self._sizes[rows] = sizes
            self._write_sizes()

    def _write_sizes(self) -> None:
        content = io.BytesIO()
        np.save(content, self._sizes)
        write_file(self.folder / _SIZES_FILE, content.getvalue())

    def _write_state(self) -> None:
        unreadable = {self.rows[name]: reason for name, reason in self.unreadable.items()}
        state = {**self._key, "num_encoded": self.num_encoded, "unreadable": unreadable}
        write_file(self.folder / _STATE_FILE, json.dumps(state).encode())


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _measure(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Tell pictures apart by their files' sizes, so that new ones under the old names are noticed."""
    return np.array([os.path.getsize(name) if os.path.exists(name) else _MISSING for name in names], dtype=np.int64)


def digest_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Tell weights apart by one number for each tensor, which does not depend on where they are.

    Args:
        weights: By name.

    Returns:
        Hexadecimal digits.
    """
    return _digest([f"{name} {value.cpu().double().sum().item():.6g}" for name, value in sorted(weights.items())])
