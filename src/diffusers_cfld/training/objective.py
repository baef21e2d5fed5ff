"""The training objective: noise error of the transfer plus noise error of the self-reconstruction.

Paper: arXiv:2402.18078, Eq. 3, 5 and 6. Official code: `pose_transfer_train.py` of YanzuoLu/CFLD @ f2ea2a7, one mean
over a batch that holds the sources first and then the targets.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch


class DoubledBatch(NamedTuple):
    """The samples that the U-Net sees for B pairs: B reconstructions, then B transfers.

    Args:
        latents: (2B, C, h, w), z_0 of the sources, then of the targets.
        pose_map: (2B, 3 + J, H, W), the sources' own poses, then the targets'.
    """

    latents: torch.Tensor
    pose_map: torch.Tensor


def double_batch(
    source_latents: torch.Tensor,
    target_latents: torch.Tensor,
    source_pose_map: torch.Tensor,
    target_pose_map: torch.Tensor,
) -> DoubledBatch:
    """Put source->source and source->target into one batch, in the published order.

    The source images are not doubled: they are encoded once, and the training module repeats what it encoded (see
    [`repeat_appearance`]).

    Args:
        source_latents: (B, C, h, w), latents of the source images, scaled as the U-Net takes them.
        target_latents: (B, C, h, w), of the target images.
        source_pose_map: (B, 3 + J, H, W), [0, 1], the sources' own poses.
        target_pose_map: (B, 3 + J, H, W), [0, 1], the targets' poses.

    Returns:
        New tensors; the inputs are not modified.

    Raises:
        ValueError: The two of a kind differ in shape, or latents and pose maps in number.
    """
    if source_latents.shape != target_latents.shape:
        raise ValueError(
            "`source_latents` and `target_latents` must have one shape, got "
            f"{tuple(source_latents.shape)} and {tuple(target_latents.shape)}."
        )
    if source_pose_map.shape != target_pose_map.shape:
        raise ValueError(
            "`source_pose_map` and `target_pose_map` must have one shape, got "
            f"{tuple(source_pose_map.shape)} and {tuple(target_pose_map.shape)}."
        )
    if source_latents.shape[0] != source_pose_map.shape[0]:
        raise ValueError(
            f"There must be one pose map per image, got {source_pose_map.shape[0]} pose maps for "
            f"{source_latents.shape[0]} latents."
        )
    return DoubledBatch(
        latents=torch.cat([source_latents, target_latents]), pose_map=torch.cat([source_pose_map, target_pose_map])
    )


def repeat_appearance(encoded: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeat what was encoded from B sources for a batch made of whole groups of them, as [`double_batch`] makes it.

    Args:
        encoded: (B, ...), e.g. prompts or query biases.
        batch_size: N, samples of the batch, a multiple of B. Sample j belongs to source j mod B.

    Returns:
        (N, ...); the input itself if N = B.

    Raises:
        ValueError: N is not a positive multiple of B.
    """
    groups, rest = divmod(batch_size, encoded.shape[0])
    if rest or groups < 1:
        raise ValueError(
            f"The batch must hold every source equally often, got {batch_size} samples for {encoded.shape[0]} sources."
        )
    # `repeat`, not `repeat_interleave`: all sources' reconstructions come first, then all their transfers.
    return encoded if groups == 1 else encoded.repeat(groups, *[1] * (encoded.ndim - 1))


def prediction_target(
    noise_scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the U-Net should predict.

    Equation:
        epsilon: eps. v_prediction: sqrt(a_t) eps - sqrt(1 - a_t) z_0 with a_t the cumulative product of alphas.

    Args:
        noise_scheduler: A scheduler of diffusers; its `prediction_type` decides.
        latents: z_0, (N, C, h, w).
        noise: eps, (N, C, h, w).
        timesteps: t, (N,) int64.

    Returns:
        (N, C, h, w) float32; the inputs are not modified.

    Raises:
        ValueError: The prediction type is neither `"epsilon"` nor `"v_prediction"`.
    """
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise.float()
    if prediction_type == "v_prediction":
        return noise_scheduler.get_velocity(latents.float(), noise.float(), timesteps)
    raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', got {prediction_type!r}.")


def min_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, snr_gamma: float = 5.0, prediction_type: str = "epsilon"
) -> torch.Tensor:
    """Weights that keep the easy, low-noise timesteps from dominating. Not part of CFLD.

    Equation:
        SNR_t = a_t / (1 - a_t); epsilon: min(SNR_t, gamma) / SNR_t; v_prediction: min(SNR_t, gamma) / (SNR_t + 1).
        Source: arXiv:2303.09556, Sec. 3.4.

    Args:
        alphas_cumprod: (T,), the scheduler's a_t, in [0, 1).
        timesteps: (N,) int64, [0, T).
        snr_gamma: gamma > 0; the source's choice is 5.
        prediction_type: `"epsilon"` or `"v_prediction"`.

    Returns:
        (N,) float32, (0, 1] for epsilon.

    Raises:
        ValueError: `snr_gamma` is not positive and finite, or the prediction type is unknown.
    """
    if not math.isfinite(snr_gamma) or snr_gamma <= 0:
        raise ValueError(f"`snr_gamma` must be a positive number, got {snr_gamma}.")
    alphas = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    snr = alphas / (1 - alphas)
    if prediction_type == "epsilon":
        return (snr_gamma / snr).clamp(max=1.0)  # 1 at zero terminal SNR, where the fraction above is 0 / 0
    if prediction_type == "v_prediction":
        return snr.clamp(max=snr_gamma) / (snr + 1)
    raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', got {prediction_type!r}.")


def cfld_loss(
    noise_pred: torch.Tensor,
    target: torch.Tensor,
    *,
    reconstruction_weight: float = 1.0,
    transfer_weight: float = 1.0,
    sample_weights: torch.Tensor | None = None,
    metric: torch.Tensor | None = None,
    cell_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The objective of a doubled batch.

    Equation:
        L = (w_rec L_rec + w_mse L_mse) / 2, each term a mean over samples and elements. With both weights 1 this is
        the mean over the doubled batch, as published: half of the paper's Eq. 6, whose minimum is the same.

    Args:
        noise_pred: (2B, C, h, w), the U-Net's predictions for a [`DoubledBatch`]: reconstructions, then transfers.
        target: (2B, C, h, w), from [`prediction_target`].
        reconstruction_weight: w_rec >= 0, of source->source (Eq. 5).
        transfer_weight: w_mse >= 0, of source->target (Eq. 3).
        sample_weights: (2B,), e.g. [`min_snr_weights`]; `None` weighs all samples equally, as the paper does.
        metric: M, (C, C), symmetric and positive semi-definite with trace C, e.g. [`pixel_metric`]: a cell's error e
            counts e^T M e / C. `None` is the identity, as in the paper.
        cell_weights: (2B, 1, h, w), >= 0, of each cell's squared error, e.g. [`LossWeightMaps`]; a term is the mean of
            the weighted errors, so that weights of mean 1 keep its size. `None` weighs all cells equally, as the paper
            does.

    Returns:
        A float32 scalar, computed in float32 whatever the inputs' dtypes.

    Raises:
        ValueError: The shapes differ, the batch is odd, `metric` is not (C, C), `cell_weights` are not (2B, 1, h, w),
            a term's weight is negative or not finite, or both are zero.
    """
    if noise_pred.shape != target.shape or noise_pred.shape[0] % 2 or not noise_pred.shape[0]:
        raise ValueError(
            "`noise_pred` and `target` must have one shape with an even number of samples, reconstructions first, got "
            f"{tuple(noise_pred.shape)} and {tuple(target.shape)}."
        )
    weights = (reconstruction_weight, transfer_weight)
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or not any(weights):
        raise ValueError(
            "`reconstruction_weight` and `transfer_weight` must be finite, >= 0 and not both 0, got "
            f"{reconstruction_weight} and {transfer_weight}."
        )
    error = noise_pred.float() - target.float()
    if metric is None:
        squares = error.square()
    else:
        channels = error.shape[1]
        if metric.shape != (channels, channels):
            raise ValueError(f"`metric` must have shape {(channels, channels)}, got {tuple(metric.shape)}.")
        squares = error * torch.einsum("cd,ndhw->nchw", metric.to(error), error)
    if cell_weights is not None:
        cells = (error.shape[0], 1, *error.shape[2:])
        if cell_weights.shape != cells:
            raise ValueError(f"`cell_weights` must have shape {cells}, got {tuple(cell_weights.shape)}.")
        squares = squares * cell_weights.to(squares)
    loss = squares.flatten(1).mean(1)  # (2B,)
    if sample_weights is not None:
        if sample_weights.shape != loss.shape:
            raise ValueError(
                f"`sample_weights` must have shape {tuple(loss.shape)}, got {tuple(sample_weights.shape)}."
            )
        loss = loss * sample_weights.to(loss)
    reconstruction, transfer = loss.chunk(2)
    return (reconstruction_weight * reconstruction.mean() + transfer_weight * transfer.mean()) / 2
