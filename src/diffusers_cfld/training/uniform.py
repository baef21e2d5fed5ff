"""Uniform random numbers that are the same on every device for the same CPU generator."""

from __future__ import annotations

import torch


def sample_uniform(
    batch_size: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """Draw one number per sample.

    Args:
        batch_size: B, number of samples.
        generator: Source of randomness; `None` is torch's global one. The numbers are drawn on its device, so that a
            CPU generator gives the same ones wherever they are used.
        device: Of the result; `None` is the generator's, or the CPU.

    Returns:
        (B,) float32, [0, 1).

    Raises:
        ValueError: `batch_size` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    drawn_on = device if generator is None else generator.device
    numbers = torch.rand(batch_size, generator=generator, device=drawn_on, dtype=torch.float32)
    return numbers if device is None else numbers.to(device)
