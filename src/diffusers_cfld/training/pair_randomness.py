"""The random numbers of a training step, each pair's its own.

What is drawn for a pair follows from the seed, the epoch and the pair's index alone. So a step has the same result
however its batch is spread over processes and accumulation steps, and a resumed run needs no generator's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class PairRandomness(NamedTuple):
    """Random numbers for the doubled batch of B pairs, sources first as [`double_batch`] orders them.

    Args:
        posterior_noise: (2B, C, h, w) standard normal, for sampling the autoencoder's posterior.
        noise: (2B, C, h, w) standard normal, eps.
        timestep_uniform: (2B,) float32, [0, 1), u of the timesteps.
        drop_uniform: (2B,) float32, [0, 1): a sample below the dropout probability loses its conditions.
    """

    posterior_noise: torch.Tensor
    noise: torch.Tensor
    timestep_uniform: torch.Tensor
    drop_uniform: torch.Tensor

    def to(self, device: torch.device | str) -> PairRandomness:
        """Move all of them.

        Args:
            device: Where to.

        Returns:
            A new tuple.
        """
        return PairRandomness(*(tensor.to(device) for tensor in self))


def sample_pair_randomness(
    indices: Sequence[int] | torch.Tensor, latent_shape: tuple[int, int, int], *, seed: int, epoch: int
) -> PairRandomness:
    """Draw the random numbers of some pairs.

    Args:
        indices: B indices of pairs in the data set, >= 0. One that comes several times gets other numbers each time.
        latent_shape: (C, h, w).
        seed: Of the run, >= 0.
        epoch: Epochs that were done before this one, >= 0.

    Returns:
        On the CPU, so that every device trains on the same numbers.

    Raises:
        ValueError: There is no index, or a number is negative.
    """
    indices = [int(index) for index in indices]
    if not indices or min(*indices, seed, epoch) < 0:
        raise ValueError(
            f"There must be at least one index, and `seed`, `epoch` and all indices must be >= 0, got {indices}, seed "
            f"{seed} and epoch {epoch}."
        )
    times: Counter[int] = Counter()
    drawn = []
    for index in indices:
        repetition = [times[index]] if times[index] else []
        drawn.append(_sample_one([seed, epoch, index, *repetition], latent_shape))
        times[index] += 1
    # (B, 2, ...) to (2B, ...), all sources before all targets
    return PairRandomness(
        *(torch.stack(tensors).transpose(0, 1).flatten(0, 1) for tensors in zip(*drawn, strict=True))
    )


def _sample_one(entropy: list[int], latent_shape: tuple[int, int, int]) -> tuple[torch.Tensor, ...]:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return (
        torch.randn(2, *latent_shape, generator=generator),
        torch.randn(2, *latent_shape, generator=generator),
        torch.rand(2, generator=generator),
        torch.rand(2, generator=generator),
    )
