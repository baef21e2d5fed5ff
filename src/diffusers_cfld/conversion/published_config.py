"""Sizes of a published checkpoint, read from the shapes of its tensors and from the trainer's `config.yaml`.

Every size is read from all tensors that carry it and the most frequent value is taken, so that one tensor of a wrong
shape is reported as such instead of being believed. Head counts are in no shape: see [`read_geometry`].
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..image_utils import as_pair
from ..processors.pose_map import POSE_MAP_CHANNELS

Shapes = Mapping[str, Sequence[int]]

_MIN_KEYS_PER_BLOCK = 3
_ATTENTIONS_PER_BLOCK = 3
_DROP_PATH_RATE = 0.2
_PUBLISHED_DECODER_HEADS = {768: 24}
_PUBLISHED_ENCODER_HEADS = {64: 2, 128: 4, 256: 8}


@dataclass(frozen=True)
class CheckpointGeometry:
    """Constructor arguments of the four models of a checkpoint.

    Args:
        source_encoder: Of [`SwinImageEncoder`].
        prompt_decoder: Of [`PerceptionRefinedDecoder`].
        appearance_encoder: Of [`AppearanceEncoder`].
        pose_adapter: Of [`PoseAdapter`].
    """

    source_encoder: dict[str, Any]
    prompt_decoder: dict[str, Any]
    appearance_encoder: dict[str, Any]
    pose_adapter: dict[str, Any]

    @property
    def num_encoders(self) -> int:
        """Number of query bias encoders."""
        encoder = self.appearance_encoder
        return len(encoder["up_block_indices"]) * int(encoder["attentions_per_block"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the reference image in pixels."""
        return as_pair(self.source_encoder["image_size"])


def _as_size(height: int, width: int) -> int | tuple[int, int]:
    return height if height == width else (height, width)


# Tensors look the same whatever these are.
_PUBLISHED_SWITCHES = {
    "APPEARANCE_GUIDANCE_CONFIG.TO_QUERIES": True,
    "APPEARANCE_GUIDANCE_CONFIG.TO_KEYS": False,
    "APPEARANCE_GUIDANCE_CONFIG.TO_VALUES": False,
    "APPEARANCE_GUIDANCE_CONFIG.TO_SELF_ATTN": False,
    "APPEARANCE_GUIDANCE_CONFIG.CONVIN_KERNEL_SIZE": 1,
    "APPEARANCE_GUIDANCE_CONFIG.CONVIN_PADDING": 0,
    "APPEARANCE_GUIDANCE_CONFIG.CONVIN_STRIDE": 1,
    "COND_STAGE_CONFIG.LAST_NORM": False,
    "DECODER_CONFIG.POSE_QUERY": False,
}


class _Config:
    """The trainer's settings by dotted name; absent ones are `None`."""

    def __init__(self, values: Mapping[str, Any] | None) -> None:
        self._values = values or {}

    def get(self, name: str) -> Any:
        value: Any = self._values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def integers(self, name: str) -> list[int] | None:
        value = self.get(name)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        if not values or any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in values):
            raise ValueError(f"`{name}` in config.yaml must be positive whole numbers, got {value!r}.")
        return values

    def integer(self, name: str) -> int | None:
        values = self.integers(name)
        if values is not None and len(values) != 1:
            raise ValueError(f"`{name}` in config.yaml must be one number, got {values}.")
        return None if values is None else values[0]

    def require_published(self, name: str, published: bool | int) -> None:
        value = self.get(name)
        for item in value if isinstance(value, list) else [value]:
            if item is not None and item != published:
                raise ValueError(
                    f"`{name}` in config.yaml is {value}, an ablation of the published code that is no part of this "
                    f"library: only checkpoints with {published} can be converted."
                )

    def require_equal(self, name: str, read: Sequence[int]) -> None:
        values = self.integers(name)
        if values is not None and list(values) != list(read):
            raise ValueError(
                f"`{name}` in config.yaml is {values}, but the checkpoint's tensors say {list(read)}: take the "
                "config.yaml that was written beside this checkpoint."
            )


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the `config.yaml` that the published trainer writes beside its checkpoint.

    Args:
        path: The file.

    Returns:
        Its nested settings.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not YAML of nested settings.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"'{path}' must be the published trainer's settings in YAML, got: {reason}") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' must hold the published trainer's nested settings, got {type(config).__name__}.")
    return config


def read_geometry(
    shapes: Shapes, config: Mapping[str, Any] | None = None, num_up_blocks: int = 4
) -> CheckpointGeometry:
    """Read the arguments of the four models from the published state dict.

    Args:
        shapes: Shapes of `pytorch_model.bin` by published key.
        config: The trainer's settings. Needed for the head counts of other than the published widths (768 in the
            decoder; 64, 128, 256 in the appearance encoder), for reference images that are not square, and for pose
            maps of other than 21 channels.
        num_up_blocks: Up blocks of the U-Net; the query bias encoders serve the last ones.

    Returns:
        The arguments. They fit the tensors unless single ones are missing or mis-shaped.

    Raises:
        ValueError: A size can be read from no tensor, a setting that is needed is absent, or `config` contradicts the
            tensors.
    """
    settings = _Config(config)
    for name, published in _PUBLISHED_SWITCHES.items():
        settings.require_published(f"MODEL.{name}", published)
    swin = _read_swin(shapes, settings)
    height, width = as_pair(swin["image_size"])
    stride = int(swin["patch_size"]) * 2 ** (len(swin["depths"]) - 1)
    return CheckpointGeometry(
        source_encoder=swin,
        prompt_decoder=_read_decoder(shapes, settings, _as_size(height // stride, width // stride)),
        appearance_encoder=_read_appearance_encoder(shapes, settings, num_up_blocks),
        pose_adapter=_read_pose_adapter(shapes, settings),
    )


def read_sample_size(
    config: Mapping[str, Any] | None, geometry: CheckpointGeometry, vae_scale: int
) -> int | tuple[int, int] | None:
    """Read the size that a checkpoint was trained at.

    Args:
        config: The trainer's settings.
        geometry: The sizes of its models.
        vae_scale: Image pixels per latent cell.

    Returns:
        Of the latents, as the U-Net's `sample_size`: their side, or (height, width). None if `config` does not tell.

    Raises:
        ValueError: The image's size is no multiple of `vae_scale`, or that of the pose maps does not belong to it.
    """
    settings = _Config(config)
    sizes = []
    for name in ("INPUT.GT.IMG_SIZE", "INPUT.POSE.IMG_SIZE"):
        size = settings.integers(name)
        if size is None:
            return None
        sizes.append(tuple(size * 2) if len(size) == 1 else tuple(size))
    (image, pose), factor = sizes, int(geometry.pose_adapter["unshuffle_factor"])
    latents = tuple(side // vae_scale for side in image)
    if (
        len(latents) != 2
        or image != tuple(side * vae_scale for side in latents)
        or pose != tuple(side * factor for side in latents)
    ):
        raise ValueError(
            f"`INPUT.GT.IMG_SIZE` and `INPUT.POSE.IMG_SIZE` in config.yaml must be height and width, {vae_scale} and "
            f"{factor} times those of the latents, got {list(image)} and {list(pose)}."
        )
    return _as_size(*latents)


def _votes(shapes: Shapes, pattern: str, dimension: int) -> list[int]:
    matcher = re.compile(pattern)
    return [shape[dimension] for key, shape in shapes.items() if len(shape) > dimension and matcher.fullmatch(key)]


def _elect(what: str, votes: Sequence[int]) -> int:
    if not votes:
        raise ValueError(
            f"The checkpoint holds no tensor that tells {what}: pytorch_model.bin must be the published trainer's "
            "state dict with the keys 'backbone.*', 'decoder.*', 'appearance_encoder.*', 'pose_encoder.*' and "
            "'learnable_vector'."
        )
    return Counter(votes).most_common(1)[0][0]


def _read(shapes: Shapes, what: str, *sources: tuple[str, int], configured: int | None = None) -> int:
    # Where few tensors tell a size, the config's vote decides between them; among equals the first counts.
    votes = [] if configured is None else [configured]
    for pattern, dimension in sources:
        votes += _votes(shapes, pattern, dimension)
    return _elect(what, votes)


def _count(shapes: Shapes, what: str, pattern: str) -> int:
    # A stray key does not make a block.
    matcher = re.compile(pattern)
    keys = Counter(int(match[1]) for match in map(matcher.match, shapes) if match)
    indices = [index for index, count in keys.items() if count >= _MIN_KEYS_PER_BLOCK]
    return _elect(what, [max(indices) + 1] if indices else [])


def _read_swin(shapes: Shapes, settings: _Config) -> dict[str, Any]:
    section = "MODEL.COND_STAGE_CONFIG"
    embed_dim = _read(
        shapes,
        "the source encoder's width",
        (r"backbone\.patch_embed\.(proj|norm)\.(weight|bias)", 0),
        (r"backbone\.layers\.0\.blocks\.\d+\.norm[12]\.(weight|bias)", 0),
    )
    patch_size = _elect("the patch size", _votes(shapes, r"backbone\.patch_embed\.proj\.weight", 2) or [4])
    num_stages = _count(shapes, "the source encoder's stages", r"backbone\.layers\.(\d+)\.")
    depths = tuple(
        _count(shapes, f"the blocks of stage {stage + 1}", rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.")
        for stage in range(num_stages)
    )
    table = r"backbone\.layers\.{}\.blocks\.\d+\.attn\.relative_position_bias_table"
    num_heads = tuple(
        _read(shapes, f"the heads of stage {stage + 1}", (table.format(stage), 1)) for stage in range(num_stages)
    )
    rows = _read(shapes, "the window size", (table.format(0), 0))
    window_size = (math.isqrt(rows) + 1) // 2
    if (2 * window_size - 1) ** 2 != rows:
        raise ValueError(
            f"The relative position tables of the source encoder must have (2 * window - 1)^2 rows, got {rows}."
        )
    height, width = _read_image_size(shapes, settings, patch_size, num_stages)
    settings.require_equal(f"{section}.EMBED_DIM", [embed_dim])
    settings.require_equal(f"{section}.DEPTHS", depths)
    settings.require_equal(f"{section}.NUM_HEADS", num_heads)
    if window_size < min(height, width) // patch_size:
        settings.require_equal(f"{section}.WINDOW_SIZE", [window_size])
    drop_path_rate = settings.get(f"{section}.DROP_PATH_RATE")
    if drop_path_rate is None:
        drop_path_rate = _DROP_PATH_RATE
    if isinstance(drop_path_rate, bool) or not isinstance(drop_path_rate, (int, float)) or not 0 <= drop_path_rate < 1:
        raise ValueError(f"`{section}.DROP_PATH_RATE` in config.yaml must be in [0, 1), got {drop_path_rate!r}.")
    return {
        "image_size": _as_size(height, width),
        "window_size": window_size,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "patch_size": patch_size,
        "drop_path_rate": float(drop_path_rate),
    }


def _read_image_size(shapes: Shapes, settings: _Config, patch_size: int, num_stages: int) -> tuple[int, int]:
    # Every source tells the number of tokens of a stage; counted in patches they agree.
    votes = [tokens * 4 ** (num_stages - 1) for tokens in _votes(shapes, r"decoder\.kv_pos_embed", 1)]
    for stage in range(num_stages):
        mask = rf"backbone\.layers\.{stage}\.blocks\.\d+\.attn_mask"
        windows, tokens = _votes(shapes, mask, 0), _votes(shapes, mask, 1)
        votes += [count * size * 4**stage for count, size in zip(windows, tokens, strict=False)]
    num_patches = _elect("the reference image's size", votes)
    configured = settings.integers("INPUT.COND.IMG_SIZE")
    if configured is not None:
        if len(configured) == 2 and math.prod(configured) == num_patches * patch_size**2:
            return configured[0], configured[1]
        raise ValueError(
            f"`INPUT.COND.IMG_SIZE` in config.yaml must be height and width of an image of {num_patches} patches of "
            f"{patch_size}x{patch_size} pixels, got {configured}."
        )
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(
            f"The checkpoint is for reference images of {num_patches} patches, which is no square: put the trainer's "
            "config.yaml with `INPUT.COND.IMG_SIZE` beside it."
        )
    return side * patch_size, side * patch_size


def _read_decoder(shapes: Shapes, settings: _Config, feature_size: int | tuple[int, int]) -> dict[str, Any]:
    section = "MODEL.DECODER_CONFIG"
    num_queries = _read(
        shapes,
        "the number of queries",
        (r"learnable_vector", 1),
        (r"decoder\.(query_feat|pos_embed)", 0),
        configured=settings.integer(f"{section}.N_CTX"),
    )
    dim = _read(
        shapes,
        "the decoder's width",
        (r"learnable_vector", 2),
        (r"decoder\.(query_feat|pos_embed)", 1),
        (r"decoder\.blocks\.\d+\.norm[123]\.(weight|bias)", 0),
    )
    num_layers = _count(shapes, "the decoder's blocks", r"decoder\.blocks\.(\d+)\.")
    feature_channels = _read(
        shapes,
        "the width of the coarsest features",
        (r"decoder\.blocks\.\d+\.attn2\.to_[kv]\.weight", 1),
        (r"decoder\.kv_pos_embed", 2),
    )
    settings.require_equal(f"{section}.N_CTX", [num_queries])
    settings.require_equal(f"{section}.CTX_DIM", [dim])
    settings.require_equal(f"{section}.DEPTH", [num_layers])
    heads = settings.integer(f"{section}.HEADS")
    return {
        "num_queries": num_queries,
        "dim": dim,
        "num_attention_heads": _heads("decoder", f"{section}.HEADS", heads, dim, _PUBLISHED_DECODER_HEADS),
        "num_layers": num_layers,
        "feature_channels": feature_channels,
        "feature_size": feature_size,
    }


def _read_appearance_encoder(shapes: Shapes, settings: _Config, num_up_blocks: int) -> dict[str, Any]:
    section = "MODEL.APPEARANCE_GUIDANCE_CONFIG"
    num_encoders = _count(shapes, "the query bias encoders", r"appearance_encoder\.blocks\.(\d+)\.")
    num_levels = -(-num_encoders // _ATTENTIONS_PER_BLOCK)
    if num_levels > num_up_blocks:
        raise ValueError(f"{num_encoders} query bias encoders need more than the U-Net's {num_up_blocks} up blocks.")
    last = _ATTENTIONS_PER_BLOCK * num_up_blocks - 1
    settings.require_equal(f"{section}.ATTN_RESIDUAL_BLOCK_IDX", range(last, last - num_encoders, -1))
    configured_heads = settings.integers(f"{section}.HEADS")
    configured_inner = settings.integers(f"{section}.INNER_DIMS")
    levels: dict[str, list[int]] = {"inner": [], "hidden": [], "outer": [], "heads": []}
    for level in range(num_levels):
        first = level * _ATTENTIONS_PER_BLOCK
        index = "(?:" + "|".join(str(first + i) for i in range(_ATTENTIONS_PER_BLOCK)) + ")"
        what = f"of the query bias encoders of level {level + 1}"
        proj_in = rf"appearance_encoder\.zero_conv_ins\.{index}\."
        proj_out = rf"appearance_encoder\.zero_conv_outs\.{index}\."
        norms = rf"appearance_encoder\.blocks\.{index}\.\d+\.norm[123]\.(weight|bias)"
        hidden = _read(shapes, f"the width {what}", (proj_in + "(weight|bias)", 0), (norms, 0))
        inner = configured_inner[first] if configured_inner and first < len(configured_inner) else None
        levels["inner"].append(_read(shapes, f"the input width {what}", (proj_in + "weight", 1), configured=inner))
        levels["hidden"].append(hidden)
        levels["outer"].append(_read(shapes, f"the output width {what}", (proj_out + "(weight|bias)", 0)))
        heads = None
        if configured_heads is not None:
            of_level = set(configured_heads[first : first + _ATTENTIONS_PER_BLOCK])
            if len(of_level) != 1:
                raise ValueError(
                    f"`{section}.HEADS` in config.yaml must give one number per encoder, equal for the "
                    f"{_ATTENTIONS_PER_BLOCK} of an up block, got {configured_heads}."
                )
            heads = of_level.pop()
        name = "appearance encoder"
        levels["heads"].append(_heads(name, f"{section}.HEADS", heads, hidden, _PUBLISHED_ENCODER_HEADS))
    for setting, key in (("INNER_DIMS", "inner"), ("EMBED_DIMS", "hidden"), ("CTX_DIMS", "outer")):
        per_encoder = [levels[key][i // _ATTENTIONS_PER_BLOCK] for i in range(num_encoders)]
        settings.require_equal(f"{section}.{setting}", per_encoder)
    num_layers = _elect(
        "the layers of the query bias encoders",
        [
            _count(shapes, f"the layers of encoder {index}", rf"appearance_encoder\.blocks\.{index}\.(\d+)\.")
            for index in range(num_encoders)
            if any(key.startswith(f"appearance_encoder.blocks.{index}.") for key in shapes)
        ],
    )
    settings.require_equal(f"{section}.DEPTH", [num_layers])
    return {
        "feature_channels": tuple(levels["inner"]),
        "hidden_channels": tuple(levels["hidden"]),
        "query_channels": tuple(levels["outer"]),
        "num_attention_heads": tuple(levels["heads"]),
        "num_layers": num_layers,
        "up_block_indices": tuple(num_up_blocks - 1 - level for level in range(num_levels)),
        "attentions_per_block": _ATTENTIONS_PER_BLOCK,
    }


def _read_pose_adapter(shapes: Shapes, settings: _Config) -> dict[str, Any]:
    section = "MODEL.POSE_GUIDANCE_CONFIG"
    num_scales = _count(shapes, "the pose encoder's scales", r"pose_encoder\.resnets\.(\d+)\.")
    channels = tuple(
        _read(
            shapes,
            f"the pose encoder's width at scale {scale + 1}",
            (rf"pose_encoder\.resnets\.{scale}\.(conv1|conv2|norm2|conv_shortcut)\.(weight|bias)", 0),
        )
        for scale in range(num_scales)
    )
    settings.require_equal(f"{section}.CHANNELS", channels)
    pose_channels = settings.integer(f"{section}.POSE_CHANNELS") or POSE_MAP_CHANNELS
    configured_factor = settings.integer(f"{section}.DOWNSCALE_FACTOR")
    unshuffled = _read(
        shapes,
        "the pose map's channels",
        (r"pose_encoder\.conv_in\.weight", 1),
        configured=None if configured_factor is None else pose_channels * configured_factor**2,
    )
    factor = math.isqrt(unshuffled // pose_channels)
    if pose_channels * factor**2 != unshuffled:
        raise ValueError(
            f"The pose encoder reads {unshuffled} channels, which is not {pose_channels} times a square: put the "
            f"trainer's config.yaml with `{section}.POSE_CHANNELS` beside the checkpoint."
        )
    settings.require_equal(f"{section}.DOWNSCALE_FACTOR", [factor])
    return {"pose_channels": pose_channels, "block_out_channels": channels, "unshuffle_factor": factor}


def _heads(name: str, setting: str, configured: int | None, width: int, published: Mapping[int, int]) -> int:
    heads = configured if configured is not None else published.get(width)
    if heads is None:
        raise ValueError(
            f"The {name}'s head count is in no tensor and its width {width} is not the published one "
            f"({', '.join(map(str, published))}): put the trainer's config.yaml with `{setting}` beside the "
            "checkpoint."
        )
    if width % heads:
        raise ValueError(f"`{setting}` in config.yaml must divide the {name}'s width {width}, got {heads}.")
    return heads


def geometry_to_config(geometry: CheckpointGeometry, latent_size: tuple[int, int], vae_scale: int) -> dict[str, Any]:
    """Write the sizes as the published trainer's settings: what [`read_geometry`] and the published code read.

    Args:
        geometry: The sizes.
        latent_size: (height, width) of the latents.
        vae_scale: Image pixels per latent cell.

    Returns:
        Nested settings, ready for YAML.
    """
    swin, decoder = geometry.source_encoder, geometry.prompt_decoder
    encoder, adapter = geometry.appearance_encoder, geometry.pose_adapter
    per_block = int(encoder["attentions_per_block"])

    def per_encoder(name: str) -> list[int]:
        return [int(value) for value in encoder[name] for _ in range(per_block)]

    blocks = [per_block * up + i for up in encoder["up_block_indices"] for i in reversed(range(per_block))]
    factor = int(adapter["unshuffle_factor"])
    return {
        "INPUT": {
            "COND": {"IMG_SIZE": list(geometry.image_size)},
            "GT": {"IMG_SIZE": [side * vae_scale for side in latent_size]},
            "POSE": {"IMG_SIZE": [side * factor for side in latent_size]},
        },
        "MODEL": {
            "APPEARANCE_GUIDANCE_CONFIG": {
                "ATTN_RESIDUAL_BLOCK_IDX": blocks,
                "CONVIN_KERNEL_SIZE": [1] * len(blocks),
                "CONVIN_PADDING": [0] * len(blocks),
                "CONVIN_STRIDE": [1] * len(blocks),
                "CTX_DIMS": per_encoder("query_channels"),
                "DEPTH": int(encoder["num_layers"]),
                "EMBED_DIMS": per_encoder("hidden_channels"),
                "HEADS": per_encoder("num_attention_heads"),
                "INNER_DIMS": per_encoder("feature_channels"),
            },
            "COND_STAGE_CONFIG": {
                "DEPTHS": [int(depth) for depth in swin["depths"]],
                "DROP_PATH_RATE": float(swin["drop_path_rate"]),
                "EMBED_DIM": int(swin["embed_dim"]),
                "LAST_NORM": False,
                "NUM_HEADS": [int(heads) for heads in swin["num_heads"]],
                "WINDOW_SIZE": int(swin["window_size"]),
            },
            "DECODER_CONFIG": {
                "CTX_DIM": int(decoder["dim"]),
                "DEPTH": int(decoder["num_layers"]),
                "HEADS": int(decoder["num_attention_heads"]),
                "N_CTX": int(decoder["num_queries"]),
            },
            "POSE_GUIDANCE_CONFIG": {
                "CHANNELS": [int(width) for width in adapter["block_out_channels"]],
                "DOWNSCALE_FACTOR": factor,
                "IN_CHANNELS": int(adapter["block_out_channels"][0]),
                "POSE_CHANNELS": int(adapter["pose_channels"]),
            },
        },
    }
