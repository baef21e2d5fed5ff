"""Timesteps and noise of a training step.

Paper: arXiv:2402.18078, Sec. 3.3: t = (1 - (t / T)^3) T with t uniform. Official code: `pose_transfer_train.py` of
YanzuoLu/CFLD @ f2ea2a7, `CUBIC_SAMPLING`. Unlike there, the random numbers of each pair are drawn separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


def cubic_timesteps(uniform: torch.Tensor, num_train_timesteps: int = 1000) -> torch.Tensor:
    """Map uniform numbers to timesteps that favour high noise.

    Equation:
        t = min(floor((1 - u^3) T), T - 1), computed in float32 as published. Half of all timesteps are at least
        0.875 T; u = 0 gives T - 1 and u = 1 gives 0.

    Args:
        uniform: u, any shape, [0, 1].
        num_train_timesteps: T, the scheduler's number of timesteps.

    Returns:
        int64 of the same shape and device, [0, T).
    """
    timesteps = ((1 - uniform.float() ** 3) * num_train_timesteps).long()
    return timesteps.clamp(0, num_train_timesteps - 1)


class PairRandomness(NamedTuple):
    """Random numbers for the 2B samples of B pairs: the B reconstructions first, then the B transfers.

    Args:
        posterior_noise: (2B, C, h, w), standard normal, for sampling the VAE's posterior.
        noise: (2B, C, h, w), standard normal, eps.
        timestep_uniform: (2B,) float32, [0, 1), u of the timesteps.
        drop_uniform: (2B,) float32, [0, 1); samples below the dropout probability lose their conditions.
    """

    posterior_noise: torch.Tensor
    noise: torch.Tensor
    timestep_uniform: torch.Tensor
    drop_uniform: torch.Tensor

    def to(self, device: torch.device | str) -> PairRandomness:
        """Move all numbers to a device.

        Args:
            device: The device.

        Returns:
            A new tuple.
        """
        return PairRandomness(*(tensor.to(device) for tensor in self))


def sample_pair_randomness(
    indices: Sequence[int] | torch.Tensor, latent_shape: tuple[int, int, int], *, seed: int, epoch: int
) -> PairRandomness:
    """Draw the random numbers of some pairs.

    They depend only on the seed, the epoch and the index of each pair. A step therefore gives the same result however
    its batch is divided among processes and accumulation steps, and a resumed run needs no state of a generator.

    Args:
        indices: Indices of the B pairs in the data set, >= 0.
        latent_shape: (C, h, w).
        seed: Seed of the run, >= 0.
        epoch: Number of epochs before this one, >= 0.

    Returns:
        The numbers, on the CPU, so that all devices train on the same ones.
    """
    drawn = []
    for index in indices:
        state = np.random.SeedSequence([seed, epoch, int(index)]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        normal = [torch.randn(2, *latent_shape, generator=generator) for _ in range(2)]
        uniform = [torch.rand(2, generator=generator) for _ in range(2)]
        drawn.append(normal + uniform)
    # From B tensors (2, ...) to one (2B, ...)
    return PairRandomness(*(torch.stack(tensors, dim=1).flatten(0, 1) for tensors in zip(*drawn, strict=True)))
