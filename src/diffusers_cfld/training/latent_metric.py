"""How much an error of the latents shows in the picture."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL


def pixel_metric(
    vae: AutoencoderKL, latents: torch.Tensor, *, generator: torch.Generator | None = None, num_probes: int = 4
) -> torch.Tensor:
    """Weigh errors of the latents' channels by what they change in the decoded picture. Not part of CFLD.

    The channels of an autoencoder may count very unequally: one of little variance may show more than one that
    varies much. The mean of the squared errors of latents takes all of them alike. With this metric [`cfld_loss`] is,
    to first order and cell by cell, the mean of the squared errors of pixels; which prediction minimises its
    expectation does not change.

    Equation:
        M = C G / tr G with G the mean over cells of J^T J, where J is the Jacobian of the decoder with respect to one
        cell. Estimated by E[g g^T] = G for g = J^T u, u standard normal noise of the picture's size.

    Args:
        vae: The autoencoder.
        latents: (B, C, h, w), scaled as the U-Net takes them, of typical pictures.
        generator: Of the noise, on the CPU.
        num_probes: Pictures of noise for each of the latents, >= 1.

    Returns:
        M, (C, C) float32, symmetric and positive semi-definite with trace C, on the latents' device.

    Raises:
        ValueError: `latents` are not 4-D or have other channels than the autoencoder's, or `num_probes` is below 1.
    """
    channels: int = vae.config.latent_channels
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(f"`latents` must have shape (batch, {channels}, h, w), got {tuple(latents.shape)}.")
    if num_probes < 1:
        raise ValueError(f"`num_probes` must be at least 1, got {num_probes}.")
    total = latents.new_zeros(channels, channels, dtype=torch.float32)
    for sample in torch.split(latents.detach().to(vae.dtype), 1):
        with torch.enable_grad():
            sample = sample.requires_grad_()
            picture = vae.decode(sample / vae.config.scaling_factor).sample
        for probe in range(num_probes):
            noise = torch.randn(picture.shape, generator=generator).to(picture)
            (gradient,) = torch.autograd.grad(picture, sample, noise, retain_graph=probe + 1 < num_probes)
            cells = gradient[0].float().flatten(1)  # (C, h w)
            total += cells @ cells.T
    return total * channels / total.trace()
