"""All of CFLD as one module whose forward is a training step's: source, pose and noisy latents in, prediction out.

Paper: arXiv:2402.18078, Fig. 2. Official code: `build_model` and the loop of `pose_transfer_train.py` of YanzuoLu/CFLD
@ f2ea2a7, two modules there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, get_args

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
from .condition_dropout import Conditions, DroppedConditions, drop_conditions
from .objective import repeat_appearance
from .optimization import UNetTrainable, set_unet_trainable


class CFLDTrainingModule(nn.Module):
    """S, D, A, P and the U-Net in one module, so that DDP, FSDP and DeepSpeed wrap one and see every parameter used.

    The attention processors that carry the query biases go onto the U-Net at the first forward and stay until
    `remove_processors`, because gradient checkpointing replays the forward in `backward()`. Each forward sets its own
    biases, and `backward()` finds those of its own forward even if others ran in between; processors that were taken
    off too early are an error there, not a wrong gradient. The components are shared, not copied: a pipeline built of
    them may sample between two steps.

    Args:
        unet: The U-Net; see [`set_trainable`] for what of it trains.
        source_encoder: S.
        prompt_decoder: D, with the null prompt.
        appearance_encoder: A.
        pose_adapter: P.
        dropped_conditions: What a dropped sample loses: `"all"` conditions (the paper) or the `"prompt"` alone (the
            published code).

    Raises:
        ValueError: `dropped_conditions` is unknown.

    Example:
        >>> with module.training_attention():  # doctest: +SKIP
        ...     noise_pred = module(source_image, pose_map, noisy_latents, timesteps, drop_mask)
        ...     cfld_loss(noise_pred, target).backward()
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
        self.alignment_heads = nn.ModuleList()
        self.aligned: list[torch.Tensor] = []
        """(N, K, h, w) for each alignment head, what it made of the last forward's features."""
        self._aligned_layers: list[str] = []
        self._features: dict[str, torch.Tensor] = {}
        self._installed: ExitStack | None = None
        self._processors: dict[str, HybridGranularityAttnProcessor] = {}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The five models by the names that a pipeline registers them under."""
        return {name: part for name, part in self.named_children() if name != "alignment_heads"}

    def add_alignment_head(self, layer_name: str, num_maps: int) -> None:
        """Read maps of the picture from features of the U-Net, linearly, with each forward.

        What a linear layer can read there the U-Net has understood, and to ask for it speeds its training up
        (arXiv:2410.06940, where the maps are another encoder's features). The head trains along and is not part of
        any pipeline.

        Args:
            layer_name: A layer of the U-Net whose output, or the first of whose outputs, is (N, C, h, w), e.g.
                `"up_blocks.2.attentions.0"`.
            num_maps: K, how many.

        Raises:
            ValueError: There is no such layer, or it does not say how many channels it has, or it has a head.
        """
        if layer_name in self._aligned_layers:
            raise ValueError(f"The layer {layer_name!r} has an alignment head already.")
        layer = dict(self.unet.named_modules()).get(layer_name)
        channels = getattr(layer, "out_channels", None)
        if layer is None or not isinstance(channels, int):
            raise ValueError(
                f"`layer_name` must be an attention or ResNet block of the U-Net, such as 'up_blocks.1.attentions.0', "
                f"got {layer_name!r}."
            )
        head = nn.Conv2d(channels, num_maps, kernel_size=1)
        # At first it asks the U-Net for nothing; random numbers would lead it astray.
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.alignment_heads.append(head)
        self._aligned_layers.append(layer_name)
        self.remove_processors()

    def _keep_features(self, layer_name: str, layer: nn.Module, args: Any, output: Any) -> None:
        self._features[layer_name] = output if isinstance(output, torch.Tensor) else output[0]

    def set_trainable(self, unet: UNetTrainable = "kv") -> tuple[str, ...]:
        """Train all of S, D, A and P, and of the U-Net what is asked for.

        Args:
            unet: As `train` of [`set_unet_trainable`]; the paper's is `"kv"`.

        Returns:
            Names of the parameters that train, as in `named_parameters()`.

        Raises:
            ValueError: As [`set_unet_trainable`].
        """
        set_unet_trainable(self.unet, self.appearance_encoder.layer_names, unet)
        for part in (self.source_encoder, self.prompt_decoder, self.appearance_encoder, self.pose_adapter):
            part.requires_grad_(True)
        return tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    def enable_gradient_checkpointing(self) -> None:
        """Trade time for memory in all five models: activations are computed again in `backward()`."""
        for part in self.parts.values():
            part.enable_gradient_checkpointing()  # type: ignore[operator]  # all five are diffusers models

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations again."""
        for part in self.parts.values():
            part.disable_gradient_checkpointing()  # type: ignore[operator]  # all five are diffusers models

    @contextmanager
    def training_attention(self) -> Iterator[None]:
        """Have the processors on the U-Net for the length of a `with` block, and off after it, also after an error.

        Put it around the training loop, or around forward *and* backward.

        Yields:
            Nothing.

        Raises:
            ValueError: A biased layer is not in the U-Net.
            RuntimeError: Another thread has biases on this U-Net.
        """
        self._install_processors()
        try:
            yield
        finally:
            self.remove_processors()

    def remove_processors(self) -> None:
        """Give the U-Net its own processors back. Nothing happens if they are on already."""
        installed, self._installed, self._processors = self._installed, None, {}
        if installed is not None:
            installed.close()

    def forward(
        self,
        source_image: torch.Tensor,
        pose_map: torch.Tensor,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        condition_drop_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise (or what the scheduler's prediction type asks for).

        Args:
            source_image: (B, 3, H_s, W_s), [-1, 1], as the source encoder takes it. Each source is encoded once.
            pose_map: (N, 3 + J, H, W), [0, 1], the poses to generate. N is a multiple of B and sample j shows source
                j mod B: with [`double_batch`], N = 2B.
            noisy_latents: z_t, (N, C, h, w).
            timesteps: t, (N,) int64.
            condition_drop_mask: (N,) bool, from [`sample_condition_drop_mask`]; `None` drops none.

        Returns:
            (N, C, h, w); the inputs are not modified.

        Raises:
            ValueError: Batches do not fit together, or as the models' own `forward`; the message names both sizes.
        """
        batch_size = noisy_latents.shape[0]
        for name, tensor in (("pose_map", pose_map), ("timesteps", timesteps)):
            if tensor.ndim == 0 or tensor.shape[0] != batch_size:
                raise ValueError(
                    f"`{name}` must have one entry per sample of `noisy_latents`, {batch_size}, got shape "
                    f"{tuple(tensor.shape)}."
                )
        if condition_drop_mask is None:
            # Not skipped: the null prompt must take part in every step, or DDP waits for its gradient.
            condition_drop_mask = torch.zeros(batch_size, dtype=torch.bool, device=noisy_latents.device)

        # The last step's biases would stay in memory while this step's are made.
        self._set_query_biases(dict.fromkeys(self._processors))

        feature_maps = self.source_encoder(source_image).feature_maps
        prompts = self.prompt_decoder(list(feature_maps.values())[-1])
        query_biases = self.appearance_encoder(feature_maps).query_biases
        residuals = self.pose_adapter(pose_map).residuals

        latent_size = (noisy_latents.shape[2], noisy_latents.shape[3])
        conditions = drop_conditions(
            condition_drop_mask,
            repeat_appearance(prompts.prompt_embeds, batch_size),
            prompts.null_prompt_embeds,
            tuple(fit_pose_residuals(residuals, latent_size)),
            {
                name: repeat_appearance(bias, batch_size)
                for name, bias in fit_query_biases(query_biases, latent_size, self._num_up_blocks).items()
            },
            self.dropped_conditions,
        )
        return self._denoise(noisy_latents, timesteps, conditions)

    def _denoise(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        self._install_processors()
        self._set_query_biases(conditions.query_biases)
        noise_pred: torch.Tensor = self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=conditions.prompt_embeds,
            # The U-Net pops from the list that it is given.
            down_intrablock_additional_residuals=list(conditions.pose_residuals),
            return_dict=False,
        )[0]
        self.aligned = [
            head(self._features.pop(layer_name))
            for layer_name, head in zip(self._aligned_layers, self.alignment_heads, strict=True)
        ]
        if noise_pred.requires_grad and not torch.compiler.is_compiling():
            # Runs before anything of the U-Net's backward, so that a checkpointed replay sees this forward's biases.
            query_biases = conditions.query_biases
            noise_pred.register_hook(lambda grad: self._prepare_backward(query_biases))  # type: ignore[no-untyped-call]
        return noise_pred

    def _prepare_backward(self, query_biases: Mapping[str, torch.Tensor]) -> None:
        if not self._processors_are_on():
            raise RuntimeError(
                "The query biases were taken off the U-Net before `backward()`, which would give wrong gradients with "
                "gradient checkpointing: call `remove_processors` or leave `training_attention` after it."
            )
        self._set_query_biases(query_biases)

    def _set_query_biases(self, query_biases: Mapping[str, torch.Tensor | None]) -> None:
        for name, query_bias in query_biases.items():
            self._processors[name].query_bias = query_bias

    def _install_processors(self) -> None:
        if self._processors_are_on():
            return
        self.remove_processors()
        layer_names = self.appearance_encoder.layer_names
        self._installed = ExitStack()
        self._processors = self._installed.enter_context(
            hybrid_granularity_attention(self.unet, dict.fromkeys(layer_names))
        )
        for layer_name in self._aligned_layers:
            layer, keep = self.unet.get_submodule(layer_name), partial(self._keep_features, layer_name)
            self._installed.callback(layer.register_forward_hook(keep).remove)

    def _processors_are_on(self) -> bool:
        """Whether ours are still on every layer: `set_attn_processor` of a user may have replaced them."""
        return bool(self._processors) and all(
            self.unet.get_submodule(name).processor is processor for name, processor in self._processors.items()
        )

    @property
    def _num_up_blocks(self) -> int:
        config: Any = self.unet.config
        return len(config.up_block_types)
