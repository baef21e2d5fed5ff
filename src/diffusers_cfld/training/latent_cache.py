"""The VAE's posteriors of all training images, computed once.

The VAE is frozen and its images are not augmented, so encoding them in every step, as the published training does,
repeats work. The moments are cached, not a sample, so each step still draws its own latents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..io_utils import write_file


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, pixel_values: torch.Tensor, slice_size: int = 8) -> torch.Tensor:
    """Encode images, a few at a time, because each takes a third of a gigabyte during encoding at 512x512.

    Args:
        vae: The VAE.
        pixel_values: (B, 3, H, W), [-1, 1].
        slice_size: How many images are encoded at a time.

    Returns:
        (B, 2C, h, w): the mean and the log variance of the posterior, not scaled.
    """
    pixel_values = pixel_values.to(vae.device, vae.dtype)
    slices = torch.split(pixel_values, slice_size)
    return torch.cat([vae.encode(images).latent_dist.parameters for images in slices])


def sample_latents(vae: AutoencoderKL, moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw latents from posteriors.

    Args:
        vae: The VAE, for its scaling factor.
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
    """Moments of the posteriors by image, in a memory-mapped file that is filled in the order of the images.

    A cache that is only partly filled continues where it stopped.

    Args:
        folder: Folder of the file, which may exist already.
        images: Paths of the images, in the order of the rows.
        vae: The VAE.
        image_size: (height, width) at which the images are encoded, pixels.
        image_shape: (height, width) with the aspect ratio that they are padded to; None if they are squashed.

    Attributes:
        num_encoded: How many images have been encoded, from the first on.
        unreadable: The images among them that could not be read, each with the reason; their moments are meaningless.

    Raises:
        ValueError: The folder has the cache of other images, another size or shape, or another VAE.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        images: Sequence[str],
        vae: AutoencoderKL,
        image_size: tuple[int, int],
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        self.rows = {image: row for row, image in enumerate(images)}
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (len(images), 2 * vae.config.latent_channels, image_size[0] // factor, image_size[1] // factor)
        # By name, since the folder of the images may be moved.
        names = "\n".join(os.path.basename(image) for image in images)
        self._record = {
            "shape": list(shape),
            "image_shape": None if image_shape is None else list(image_shape),
            "images": hashlib.sha256(names.encode()).hexdigest(),
            "vae": f"{sum(weight.double().sum().item() for weight in vae.parameters()):.6g}",
        }
        self._file = Path(folder, "moments.json")
        rows = Path(folder, "moments.npy")
        if self._file.exists():
            found = json.loads(self._file.read_text())
            if found["record"] != self._record:
                raise ValueError(
                    f"'{folder}' has the latents of other images, another size or shape, or another VAE: delete it."
                )
            self.num_encoded: int = found["num_encoded"]
            self.unreadable = {images[int(row)]: reason for row, reason in found["unreadable"].items()}
            self._moments: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(rows, "r+")
        else:
            rows.parent.mkdir(parents=True, exist_ok=True)
            self.num_encoded, self.unreadable = 0, {}
            self._moments = np.lib.format.open_memmap(rows, "w+", np.float32, shape)

    def append(self, moments: torch.Tensor, unreadable: Mapping[str, str] | None = None) -> None:
        """Store the moments of the next images; they count as encoded once they are on the disk.

        Args:
            moments: (B, 2C, h, w), those of the images from `num_encoded` on.
            unreadable: Images among these that could not be read, each with the reason.
        """
        stop = self.num_encoded + len(moments)
        self._moments[self.num_encoded : stop] = moments.float().cpu().numpy()
        self._moments.flush()
        self.num_encoded = stop
        self.unreadable.update(unreadable or {})
        state = {
            "record": self._record,
            "num_encoded": self.num_encoded,
            "unreadable": {self.rows[image]: reason for image, reason in self.unreadable.items()},
        }
        write_file(self._file, json.dumps(state).encode())

    def __call__(self, images: Sequence[str]) -> torch.Tensor:
        """Look up the moments of images.

        Args:
            images: Paths of B images.

        Returns:
            (B, 2C, h, w) float32, on the CPU.

        Raises:
            KeyError: An image is not in the cache.
        """
        return torch.from_numpy(self._moments[[self.rows[image] for image in images]])
