"""Do the components of a pipeline fit each other? Said when they are put together, not deep inside a forward."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from diffusers.utils.torch_utils import unwrap_module

from ..processors.pose_map import POSE_MAP_CHANNELS
from .pipeline_output import Appearance, PoseFeatures


def check_components(
    vae: Any, unet: Any, source_encoder: Any, prompt_decoder: Any, appearance_encoder: Any, pose_adapter: Any
) -> None:
    """Check that the components of a pipeline fit each other; absent ones are not checked.

    Args:
        vae: Autoencoder.
        unet: U-Net.
        source_encoder: S.
        prompt_decoder: D.
        appearance_encoder: A.
        pose_adapter: P.

    Raises:
        ValueError: Two of them do not fit; the message names both and what must be equal.
    """
    checks: list[tuple[str, Any, str, Any]] = []
    if unet is not None and unet.config.sample_size is None:
        raise ValueError("The unet's sample_size must be set (Stable Diffusion 1.5: 64), got None.")
    if unet is not None and vae is not None:
        checks.append(
            ("vae's latent_channels", vae.config.latent_channels, "in_channels", unet.config.in_channels),
        )
    if unet is not None and prompt_decoder is not None:
        checks.append(
            ("prompt_decoder's dim", prompt_decoder.config.dim, "cross_attention_dim", unet.config.cross_attention_dim)
        )
    if unet is not None and pose_adapter is not None:
        widths = tuple(pose_adapter.config.block_out_channels)
        expected = tuple(unet.config.block_out_channels[: len(widths)])
        checks.append(("pose_adapter's block_out_channels", widths, "block_out_channels", expected))
        kinds = unet.config.down_block_types
        # Those add what comes from outside after they have halved the sides.
        late = [kind for kind in kinds[: len(widths)][: len(kinds) - 1] if "CrossAttn" not in kind]
        if late:
            raise ValueError(
                f"The unet's down blocks that the pose_adapter serves must have cross-attention or be its last, got "
                f"{late[0]}."
            )
    if unet is not None and appearance_encoder is not None:
        config = appearance_encoder.config
        widths = tuple(config.query_channels)
        reversed_widths = tuple(reversed(unet.config.block_out_channels))
        expected = tuple(
            reversed_widths[index] if index < len(reversed_widths) else None for index in config.up_block_indices
        )
        checks.append(("appearance_encoder's query_channels", widths, "up blocks' channels", expected))
    for name, value, counterpart, expected in checks:
        if value != expected:
            raise ValueError(f"The {name} must equal the unet's {counterpart}, got {value} and {expected}.")
    if unet is not None and appearance_encoder is not None:
        layers = {name for name, _ in unwrap_module(unet).named_modules()}
        missing = [name for name in appearance_encoder.layer_names if name not in layers]
        if missing:
            raise ValueError(f"The appearance_encoder serves {missing[0]!r}, which is not a layer of the unet.")
    if source_encoder is not None and appearance_encoder is not None:
        read, stages = tuple(appearance_encoder.config.feature_channels), appearance_encoder.stages
        given = source_encoder.feature_channels
        expected = tuple(given[stage - 1] if stage <= len(given) else None for stage in stages)
        if read != expected:
            raise ValueError(
                "The appearance_encoder's feature_channels must equal those of the source_encoder's stages that it "
                f"reads, {', '.join(map(str, stages))}, got {read} and {expected}."
            )
    if source_encoder is not None and prompt_decoder is not None:
        features = source_encoder.feature_channels[-1]
        if prompt_decoder.config.feature_channels != features:
            raise ValueError(
                "The prompt_decoder's feature_channels must equal the channels of the source_encoder's last stage, "
                f"got {prompt_decoder.config.feature_channels} and {features}."
            )
        stride = source_encoder.feature_strides[-1]
        cells = tuple(-(-side // stride) for side in source_encoder.image_size)
        if prompt_decoder.feature_size != cells:
            raise ValueError(
                "The prompt_decoder's feature_size must be that of the source_encoder's coarsest map, got "
                f"{prompt_decoder.feature_size} and {cells}: they are of different models."
            )
    if pose_adapter is not None and pose_adapter.config.pose_channels != POSE_MAP_CHANNELS:
        raise ValueError(
            f"The pose_adapter's pose_channels must be those of pose maps, {POSE_MAP_CHANNELS}, got "
            f"{pose_adapter.config.pose_channels}."
        )


def require_components(pipe: Any, *names: str) -> None:
    """Check that a pipeline has what is needed of it.

    Args:
        pipe: The pipeline.
        *names: Of the components.

    Raises:
        ValueError: One is missing; the message names the first.
    """
    for name in names:
        if getattr(pipe, name) is None:
            raise ValueError(f"The pipeline has no {name}; load one.")


def check_frame(height: Any, width: Any) -> None:
    """Check the shape of the photos.

    Args:
        height: Pixels, or None.
        width: Likewise.

    Raises:
        ValueError: They are not two positive whole numbers, and not both None.
    """
    sides = [side for side in (height, width) if isinstance(side, Integral) and not isinstance(side, bool)]
    is_frame = len(sides) == 2 and min(map(int, sides)) > 0
    if not is_frame and not (height is None and width is None):
        raise ValueError(
            f"`frame_height` and `frame_width` must be two whole numbers of at least 1, or both None, got {height!r} "
            f"and {width!r}."
        )


def check_appearance(appearance: Appearance, unet: Any, appearance_encoder: Any) -> None:
    """Check that an encoded appearance is of a pipeline with this U-Net's widths and biases for the same layers.

    Args:
        appearance: The encoded appearance.
        unet: U-Net.
        appearance_encoder: A; without one the biases are not checked.

    Raises:
        ValueError: It is not.
    """
    width, expected = appearance.prompt_embeds.shape[-1], unet.config.cross_attention_dim
    if width != expected:
        raise ValueError(
            f"The encoded appearance is of another model: its prompts are {width} wide, the unet's "
            f"cross_attention_dim is {expected}. Encode it with this pipeline."
        )
    if appearance_encoder is None:
        return
    widths = unwrap_module(appearance_encoder).layer_widths
    found = {name: bias.shape[1] for name, bias in appearance.query_biases.items()}
    if found != widths:
        raise ValueError(
            f"The encoded appearance is of another model: its query biases (layer: channels) are {found}, this "
            f"pipeline's appearance_encoder makes {widths}. Encode it with this pipeline."
        )


def check_pose_features(features: PoseFeatures, unet: Any) -> None:
    """Check that encoded poses are of a pipeline with this U-Net's widths.

    Args:
        features: The encoded poses.
        unet: U-Net; without one nothing is checked.

    Raises:
        ValueError: They are not.
    """
    if unet is None:
        return
    channels = tuple(residual.shape[1] for residual in features.residuals.values())
    expected = tuple(unet.config.block_out_channels[: len(channels)])
    if channels != expected:
        raise ValueError(
            f"The encoded poses are of another model: they have {channels} channels, the unet's blocks {expected}. "
            "Encode them with this pipeline."
        )
