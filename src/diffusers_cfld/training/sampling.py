"""Which timesteps a training step looks at.

Paper: arXiv:2402.18078, Sec. 3.3: t = (1 - (t / T)^3) T with t uniform. Official code: `pose_transfer_train.py` of
YanzuoLu/CFLD @ f2ea2a7, `CUBIC_SAMPLING`.
"""

from __future__ import annotations

import torch

from .uniform import sample_uniform


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

    Raises:
        ValueError: `num_train_timesteps` is not positive.
    """
    _check_num_train_timesteps(num_train_timesteps)
    timesteps = ((1 - uniform.float() ** 3) * num_train_timesteps).long()
    return timesteps.clamp(0, num_train_timesteps - 1)


def uniform_timesteps(uniform: torch.Tensor, num_train_timesteps: int = 1000) -> torch.Tensor:
    """Map uniform numbers to equally probable timesteps, as Stable Diffusion is trained. Not the paper's choice.

    Args:
        uniform: u, any shape, [0, 1].
        num_train_timesteps: T, the scheduler's number of timesteps.

    Returns:
        int64 of the same shape and device, [0, T): min(floor(u T), T - 1).

    Raises:
        ValueError: `num_train_timesteps` is not positive.
    """
    _check_num_train_timesteps(num_train_timesteps)
    return (uniform * num_train_timesteps).long().clamp(0, num_train_timesteps - 1)


def sample_timesteps_cubic(
    batch_size: int,
    num_train_timesteps: int = 1000,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw one timestep per sample from the paper's cubic distribution, see [`cubic_timesteps`].

    Args:
        batch_size: B, number of samples: twice the number of pairs in the paper's objective.
        num_train_timesteps: T, the scheduler's number of timesteps.
        generator: Source of randomness; `None` is torch's global one.
        device: Of the result; `None` is the generator's, or the CPU.

    Returns:
        (B,) int64, [0, T).

    Raises:
        ValueError: `batch_size` or `num_train_timesteps` is not positive.
    """
    return cubic_timesteps(sample_uniform(batch_size, generator, device), num_train_timesteps)


def sample_timesteps_uniform(
    batch_size: int,
    num_train_timesteps: int = 1000,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Draw one timestep per sample with equal probabilities, see [`uniform_timesteps`].

    Args:
        batch_size: B, number of samples.
        num_train_timesteps: T, the scheduler's number of timesteps.
        generator: Source of randomness; `None` is torch's global one.
        device: Of the result; `None` is the generator's, or the CPU.

    Returns:
        (B,) int64, [0, T).

    Raises:
        ValueError: `batch_size` or `num_train_timesteps` is not positive.
    """
    return uniform_timesteps(sample_uniform(batch_size, generator, device), num_train_timesteps)


def _check_num_train_timesteps(num_train_timesteps: int) -> None:
    if num_train_timesteps < 1:
        raise ValueError(f"`num_train_timesteps` must be at least 1, got {num_train_timesteps}.")
