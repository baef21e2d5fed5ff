"""All of CFLD as one module, whose forward is the forward of a training step.

Paper: arXiv:2402.18078, Fig. 2. Official code: `build_model` and the loop of `pose_transfer_train.py` of YanzuoLu/CFLD
@ f2ea2a7, which uses two modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import get_args

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ..models.appearance_encoder import AppearanceEncoder
from ..models.attention_processor import (
    HybridGranularityAttnProcessor,
    fit_pose_residuals,
    fit_query_biases,
    hybrid_granularity_attention,
)
from ..models.pose_adapter import PoseAdapter
from ..models.prompt_decoder import PerceptionRefinedDecoder
from ..models.source_encoder import SwinImageEncoder
from .objective import DroppedConditions, drop_conditions
from .optimization import UNetTrainable, set_unet_trainable


class CFLDTrainingModule(nn.Module):
    """S, D, A, P and the U-Net as one module that uses all of its parameters, for DDP, FSDP and DeepSpeed to wrap.

    The models are shared, not copied: a pipeline with the same models may sample between two steps.

    Args:
        unet: The U-Net; [`set_trainable`] chooses which of its parameters train.
        source_encoder: S.
        prompt_decoder: D, with the null prompt.
        appearance_encoder: A.
        pose_adapter: P.
        dropped_conditions: What a dropped sample loses: `"all"` conditions (the paper) or only the `"prompt"` (the
            published code).

    Raises:
        ValueError: `dropped_conditions` is unknown.

    Example:
        >>> with module.training_attention():  # doctest: +SKIP
        ...     noise_pred = module(source_image, pose_map, noisy_latents, timesteps, condition_drop_mask)
        ...     cfld_loss(noise_pred, noise).backward()
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        source_encoder: SwinImageEncoder,
        prompt_decoder: PerceptionRefinedDecoder,
        appearance_encoder: AppearanceEncoder,
        pose_adapter: PoseAdapter,
        dropped_conditions: DroppedConditions = "all",
    ) -> None:
        super().__init__()
        if dropped_conditions not in get_args(DroppedConditions):
            raise ValueError(f"`dropped_conditions` must be 'all' or 'prompt', got {dropped_conditions!r}.")
        self.unet = unet
        self.source_encoder = source_encoder
        self.prompt_decoder = prompt_decoder
        self.appearance_encoder = appearance_encoder
        self.pose_adapter = pose_adapter
        self.dropped_conditions: DroppedConditions = dropped_conditions
        self._processors: dict[str, HybridGranularityAttnProcessor] = {}

    def set_trainable(self, unet: UNetTrainable = "kv") -> None:
        """Make all of S, D, A and P trainable, and some parameters of the U-Net.

        Args:
            unet: Which of them, as `train` of [`set_unet_trainable`]; `"kv"` in the paper.

        Raises:
            ValueError: `unet` is unknown.
        """
        self.requires_grad_(True)
        set_unet_trainable(self.unet, self.appearance_encoder.layer_names, unet)

    def enable_gradient_checkpointing(self) -> None:
        """Save memory in all five models, at the cost of time: compute activations again in `backward()`."""
        for model in self.children():
            model.enable_gradient_checkpointing()  # type: ignore[operator]  # all five are diffusers models

    def disable_gradient_checkpointing(self) -> None:
        """Stop computing activations again in `backward()`."""
        for model in self.children():
            model.disable_gradient_checkpointing()  # type: ignore[operator]  # all five are diffusers models

    @contextmanager
    def training_attention(self) -> Iterator[None]:
        """Make the U-Net's cross-attentions take query biases for the duration of a `with` block.

        Put it around the training loop, or around both forward *and* backward: gradient checkpointing repeats the
        forward during `backward()`.

        Yields:
            Nothing.

        Raises:
            ValueError: A biased layer is not in the U-Net.
            RuntimeError: Another thread has put biases on this U-Net.
        """
        no_biases = dict.fromkeys(self.appearance_encoder.layer_names)
        with hybrid_granularity_attention(self.unet, no_biases) as self._processors:
            try:
                yield
            finally:
                self._processors = {}

    def forward(
        self,
        source_image: torch.Tensor,
        pose_map: torch.Tensor,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        condition_drop_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise (or the velocity, if that is the scheduler's prediction type).

        Args:
            source_image: (B, 3, H_s, W_s), [-1, 1], the input of the source encoder. Each source is encoded once.
            pose_map: (N, 3 + J, H, W), [0, 1], the poses to generate. N is a multiple of B, and sample j shows source
                j mod B. For the whole objective, N = 2B, with the sources' own poses first.
            noisy_latents: z_t, (N, C, h, w).
            timesteps: t, (N,) int64.
            condition_drop_mask: (N,) bool, true where the conditions are dropped; `None` drops none.

        Returns:
            (N, C, h, w); the inputs are not modified.

        Raises:
            ValueError: The batches do not fit together.
            RuntimeError: The call is not inside [`training_attention`].
        """
        batch_size, num_sources = noisy_latents.shape[0], source_image.shape[0]
        if pose_map.shape[0] != batch_size or batch_size % num_sources:
            raise ValueError(
                "There must be one pose map per sample of `noisy_latents`, and the same number of samples for each "
                f"source, got {batch_size} samples, {pose_map.shape[0]} pose maps and {num_sources} sources."
            )
        if condition_drop_mask is None:
            # Not skipped, because the null prompt must be used in every step, or DDP waits for its gradient.
            condition_drop_mask = torch.zeros(batch_size, dtype=torch.bool, device=noisy_latents.device)

        # Otherwise the biases of the last step would stay in memory while those of this one are computed.
        self._set_query_biases(dict.fromkeys(self.appearance_encoder.layer_names))

        feature_maps = self.source_encoder(source_image).feature_maps
        prompts = self.prompt_decoder(list(feature_maps.values())[-1])
        query_biases = self.appearance_encoder(feature_maps).query_biases
        residuals = self.pose_adapter(pose_map).residuals

        latent_size = (noisy_latents.shape[2], noisy_latents.shape[3])
        num_up_blocks = len(self.unet.config["up_block_types"])

        def repeat(encoded: torch.Tensor) -> torch.Tensor:
            # (B, ...) to (N, ...): all sources' reconstructions come first, then all their transfers.
            return encoded.repeat(batch_size // num_sources, *[1] * (encoded.ndim - 1))

        conditions = drop_conditions(
            condition_drop_mask,
            repeat(prompts.prompt_embeds),
            prompts.null_prompt_embeds,
            fit_pose_residuals(residuals, latent_size),
            {name: repeat(bias) for name, bias in fit_query_biases(query_biases, latent_size, num_up_blocks).items()},
            self.dropped_conditions,
        )

        self._set_query_biases(conditions.query_biases)
        noise_pred: torch.Tensor = self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=conditions.prompt_embeds,
            # The U-Net pops from the list that it gets.
            down_intrablock_additional_residuals=list(conditions.pose_residuals),
            return_dict=False,
        )[0]
        if noise_pred.requires_grad and not torch.compiler.is_compiling():
            # Runs before the rest of the backward, so that what gradient checkpointing repeats has the biases of this
            # forward, even if there were other forwards in between.
            noise_pred.register_hook(lambda grad: self._set_query_biases(conditions.query_biases))  # type: ignore[no-untyped-call]
        return noise_pred

    def _set_query_biases(self, query_biases: Mapping[str, torch.Tensor | None]) -> None:
        if not self._processors:
            raise RuntimeError(
                "Run both the forward and `backward()` inside `with module.training_attention():` for right gradients."
            )
        for name, query_bias in query_biases.items():
            self._processors[name].query_bias = query_bias
