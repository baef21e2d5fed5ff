"""Convert the published checkpoint into a pipeline folder, and such a folder back.

Published: YanzuoLu/CFLD @ f2ea2a7, two pickles by accelerate. Components are converted one after the other from mapped
files, so that no more than the largest of them is in memory.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import diffusers
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm

from ..image_utils import as_pair
from ..models.appearance_encoder import AppearanceEncoder
from ..models.pose_adapter import PoseAdapter
from ..models.prompt_decoder import PerceptionRefinedDecoder
from ..models.source_encoder import SwinImageEncoder
from ..pipelines.model_card import make_model_card
from ..pipelines.pipeline_cfld import CFLDPipeline
from ..processors.cropping import DEEPFASHION_SIZE, has_shape
from .published_config import CheckpointGeometry, geometry_to_config, read_config, read_geometry, read_sample_size
from .state_dict import (
    MODEL_COMPONENTS,
    UNET_COMPONENT,
    describe_mismatch,
    from_published_key,
    sort_published_keys,
    swin_buffers,
    to_published_key,
)
from .weights_io import (
    KEPT_ENTRIES,
    describe_file,
    load_pickle,
    read_json,
    read_weights,
    require_tensors,
    staged_folder,
    write_weights,
)

logger = logging.getLogger(__name__)

STABLE_DIFFUSION_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MODEL_FILE = "pytorch_model.bin"
UNET_FILE = "pytorch_model_1.bin"
CONFIG_FILE = "config.yaml"
INDEX_FILE = "model_index.json"

# What the Hub puts beside the files of a model.
_HUB_ENTRIES = ("README.md", *KEPT_ENTRIES)
_PIPELINE_ENTRIES = (INDEX_FILE, *MODEL_COMPONENTS, UNET_COMPONENT, "vae", "scheduler", *_HUB_ENTRIES)

_PACKAGE = __name__.split(".")[0]
_MODEL_CLASSES: dict[str, Any] = {
    "source_encoder": SwinImageEncoder,
    "prompt_decoder": PerceptionRefinedDecoder,
    "appearance_encoder": AppearanceEncoder,
    "pose_adapter": PoseAdapter,
}
_PUBLISHED_SCHEDULE: dict[str, Any] = {
    "clip_sample": False,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_BASE_CONFIGS = ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json")


def convert_checkpoint(
    checkpoint: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    token: str | None = None,
    revision: str | None = None,
) -> Path:
    """Convert a published checkpoint into a folder for `CFLDPipeline.from_pretrained`.

    Args:
        checkpoint: Folder with `pytorch_model.bin`, `pytorch_model_1.bin` and, when the sizes are not the published
            ones, the `config.yaml` that the published trainer writes beside them.
        base: Stable Diffusion 1.5, a local folder or a Hub id; its VAE, its scheduler's betas and its U-Net's
            architecture are used.
        output: Folder to make; it appears when all of it is there.
        dtype: Floating format of all weights; `None` keeps the checkpoint's.
        variant: Put into the weights' file names, e.g. `"fp16"`.
        overwrite: Replace `output` if it is a former conversion.
        progress: Show a bar.
        token: Hub token for `base`.
        revision: Hub revision of `base`.

    Returns:
        The output folder.

    Raises:
        OSError: A file is missing or cannot be read or written, or `base` cannot be fetched.
        ValueError: A file is damaged; keys are missing, unexpected or mis-shaped (all listed); the parts do not fit
            one another; or `output` is in the way.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    _check_variant(variant)
    sources = _find_sources(checkpoint)
    inputs = (checkpoint, base) if Path(base).exists() else (checkpoint,)
    with staged_folder(
        output, overwrite=overwrite, marker=INDEX_FILE, entries=_PIPELINE_ENTRIES, inputs=inputs
    ) as folder:
        base_folder = _find_base(base, token=token, revision=revision)
        unet_config = read_json(base_folder / UNET_COMPONENT / "config.json")
        vae_scale = _vae_scale(read_json(base_folder / "vae" / "config.json"))
        _convert_vae(base_folder, folder, dtype, variant)  # first, so that a base that lacks weights is told at once
        total = 2 * sum(path.stat().st_size for path in sources)
        with tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=not progress) as bar:
            _, models, components = _open_checkpoint(checkpoint, unet_config, vae_scale)
            for name, model in models.items():
                _write_component(folder / name, model, components.pop(name), dtype, variant, bar.update)
            scheduler: Any = make_scheduler(read_json(base_folder / "scheduler" / "scheduler_config.json"))
            scheduler.save_config(folder / "scheduler")
            _write_index(folder)
            described = [describe_file(path, bar.update) for path in sources]
            bar.total = bar.n  # known now: the checkpoint's files and its tensors
            bar.refresh()
        pipe = CFLDPipeline.from_pretrained(folder, variant=variant, dtype=dtype)
        card = make_model_card(
            pipe,
            "path/to/this/folder",
            base_model=str(base) if not Path(base).is_dir() else STABLE_DIFFUSION_ID,
            variant=variant,
            source_files={file.name: file.sha256 for file in described},
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return output


def convert_to_original(
    model: str | Path,
    output: str | Path,
    *,
    variant: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Convert a pipeline folder into the published layout: the inverse of [`convert_checkpoint`].

    Args:
        model: Local folder of a saved `CFLDPipeline`.
        output: Folder to make, with `pytorch_model.bin`, `pytorch_model_1.bin` and a `config.yaml` of the sizes.
        variant: Variant of the weights to read.
        overwrite: Replace `output` if it is a former conversion.
        progress: Show a bar.

    Returns:
        The output folder.

    Raises:
        OSError: A part is missing or cannot be read or written.
        ValueError: A part is damaged or incomplete (all keys listed), the published layout cannot hold it, or `output`
            is in the way.
    """
    model, output = Path(model), Path(output)
    _check_variant(variant)
    _check_pipeline_folder(model)
    configs = {name: read_json(model / name / "config.json") for name in (*MODEL_COMPONENTS, UNET_COMPONENT)}
    models = {name: _from_config(_MODEL_CLASSES[name], configs[name]) for name in MODEL_COMPONENTS}
    unet = _from_config(UNet2DConditionModel, configs[UNET_COMPONENT])
    geometry = _geometry_of(models)
    vae_config = model / "vae" / "config.json"
    vae_scale = _vae_scale(read_json(vae_config)) if vae_config.is_file() else 8
    config = geometry_to_config(geometry, as_pair(unet.config.sample_size), vae_scale)
    _check_layout_holds(models, geometry, config, len(unet.config.up_block_types))
    _check_published(model)
    with (
        staged_folder(
            output,
            overwrite=overwrite,
            marker=MODEL_FILE,
            entries=(MODEL_FILE, UNET_FILE, CONFIG_FILE),
            inputs=(model,),
        ) as folder,
        tqdm(total=len(configs), unit="part", desc="Converting", disable=not progress) as bar,
    ):
        tensors: dict[str, torch.Tensor] = {}
        for name in MODEL_COMPONENTS:
            weights = _read_component(model, name, models[name], variant)
            for key in models[name].state_dict():
                tensors[to_published_key(name, key, geometry.num_encoders)] = weights.pop(key)
            bar.update()
        tensors.update(_swin_buffers_of(geometry))
        torch.save({key: tensors[key] for key in sort_published_keys(tensors)}, folder / MODEL_FILE)
        del tensors
        weights = _read_component(model, UNET_COMPONENT, unet, variant)
        published = {to_published_key(UNET_COMPONENT, key): weights.pop(key) for key in unet.state_dict()}
        torch.save(published, folder / UNET_FILE)
        del published
        bar.update()
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(config), encoding="utf-8")
    return output


def convert_swin(
    weights: str | Path,
    output: str | Path,
    *,
    model_name: str = "swin_base_patch4_window12_384",
    image_size: int | tuple[int, int] = 256,
    window_size: int = 16,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a file of Swin weights into a folder for `SwinImageEncoder.from_pretrained`.

    Args:
        weights: In timm's or the original Swin's layout; see [`load_swin_weights`].
        output: Folder to make.
        model_name: timm name of the architecture.
        image_size: Side of the source image in pixels, or (height, width).
        window_size: Side of the attention window in tokens; the relative position tables are resized to it.
        dtype: Floating format of the written weights; `None` keeps float32.
        variant: Put into the weights' file name.
        overwrite: Replace `output` if it is a former conversion.

    Returns:
        The output folder.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The weights are damaged or do not fit, or `output` is in the way.
    """
    output = Path(output)
    _check_variant(variant)
    with staged_folder(
        output,
        overwrite=overwrite,
        marker="config.json",
        entries=("config.json", "diffusion_pytorch_model*", *_HUB_ENTRIES),
        inputs=(weights,),
    ) as folder:
        encoder = SwinImageEncoder.from_timm(
            model_name, checkpoint_path=str(weights), image_size=image_size, window_size=window_size
        )
        encoder.save_config(folder)
        write_weights(folder, encoder.state_dict(), dtype, variant)
    return output


def make_scheduler(base_config: Mapping[str, Any]) -> DDPMScheduler:
    """Make the published scheduler: DDPM with the base's betas, leading steps with offset 1, epsilon, no clipping.

    Args:
        base_config: Configuration of the base's scheduler, of whatever class.

    Returns:
        The scheduler.

    Raises:
        ValueError: The configuration has no betas.
    """
    if "beta_start" not in base_config and base_config.get("trained_betas") is None:
        raise ValueError(
            "The base's scheduler/scheduler_config.json must hold `beta_start`, `beta_end` and `beta_schedule`, got "
            f"{sorted(base_config)}: use Stable Diffusion 1.5 as the base."
        )
    # Settings of other schedulers (`set_alpha_to_one`, `skip_prk_steps`) are kept for whoever swaps the scheduler.
    config = {name: value for name, value in base_config.items() if not name.startswith("_")}
    scheduler: DDPMScheduler = DDPMScheduler.from_config({**config, **_PUBLISHED_SCHEDULE})
    return scheduler


def _check_variant(variant: str | None) -> None:
    if variant is not None and not variant.replace("_", "").isalnum():
        raise ValueError(f"`variant` must be letters, digits and underscores such as 'fp16', got {variant!r}.")


def _find_sources(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        raise FileNotFoundError(
            f"The checkpoint '{checkpoint}' is not a folder: expected one with '{MODEL_FILE}' and '{UNET_FILE}'."
        )
    missing = [name for name in (MODEL_FILE, UNET_FILE) if not (checkpoint / name).is_file()]
    if missing:
        names = " and ".join(f"'{name}'" for name in missing)
        raise FileNotFoundError(
            f"The checkpoint '{checkpoint}' lacks {names}: put both pickles of the published checkpoint into it."
        )
    return [path for name in (MODEL_FILE, UNET_FILE, CONFIG_FILE) if (path := checkpoint / name).is_file()]


def _find_base(base: str | Path, *, token: str | None, revision: str | None) -> Path:
    folder = Path(base)
    if not folder.is_dir():
        is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(base)) and not folder.exists()
        if not is_hub_id:
            raise FileNotFoundError(
                f"The base '{base}' is not a folder: expected Stable Diffusion 1.5, a local folder or a Hub id such "
                f"as '{STABLE_DIFFUSION_ID}'."
            )
        folder = _download_base(str(base), token=token, revision=revision)
    missing = [name for name in _BASE_CONFIGS if not (folder / name).is_file()]
    if not any((folder / "vae").glob("*.safetensors")) and not any((folder / "vae").glob("*.bin")):
        missing.append("vae/diffusion_pytorch_model.safetensors")
    if missing:
        raise ValueError(
            f"The base '{base}' lacks {', '.join(missing)}: expected a Stable Diffusion 1.5 folder in diffusers' "
            "layout."
        )
    return folder


def _download_base(base: str, *, token: str | None, revision: str | None) -> Path:
    weights = "vae/diffusion_pytorch_model.{}"

    def download(suffix: str) -> Path:
        patterns = [*_BASE_CONFIGS, weights.format(suffix)]
        return Path(snapshot_download(base, allow_patterns=patterns, token=token, revision=revision))

    try:
        folder = download("safetensors")
        if not (folder / weights.format("safetensors")).is_file():
            folder = download("bin")
    except (OSError, ValueError) as error:
        reason = shorten(str(error), 300)
        raise OSError(
            f"The base '{base}' is no local folder and could not be fetched from the Hub ({reason}): check its "
            "name, your connection and, if it is private, your token."
        ) from error
    return folder


def _vae_scale(config: Mapping[str, Any]) -> int:
    return int(2 ** (len(config.get("block_out_channels", (0,) * 4)) - 1))


def _from_config(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Build a model without memory for its weights."""
    with torch.device("meta"):
        return model_class.from_config({name: value for name, value in config.items() if not name.startswith("_")})


def _build_models(geometry: CheckpointGeometry) -> dict[str, Any]:
    with torch.device("meta"):
        return {name: _MODEL_CLASSES[name](**getattr(geometry, name)) for name in MODEL_COMPONENTS}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return _shapes(model.state_dict())


def _swin_buffers_of(geometry: CheckpointGeometry) -> dict[str, torch.Tensor]:
    swin = geometry.source_encoder
    return swin_buffers(geometry.image_size, swin["patch_size"], swin["window_size"], swin["depths"])


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _open_checkpoint(
    checkpoint: Path, unet_config: Mapping[str, Any], vae_scale: int
) -> tuple[CheckpointGeometry, dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Map both pickles and account for every key, before anything is written.

    Args:
        checkpoint: The folder.
        unet_config: Of the base's U-Net.
        vae_scale: Image pixels per latent cell.

    Returns:
        The sizes; by component, models without memory for weights, and their state dicts.
    """
    model_path, unet_path, config_path = (checkpoint / name for name in (MODEL_FILE, UNET_FILE, CONFIG_FILE))
    config = read_config(config_path) if config_path.is_file() else None
    published = require_tensors(load_pickle(model_path), model_path)
    published_unet = require_tensors(load_pickle(unet_path), unet_path)
    num_up_blocks = len(unet_config.get("up_block_types", (None,) * 4))
    with _naming(model_path):
        geometry = read_geometry(_shapes(published), config, num_up_blocks)
        sample_size = read_sample_size(config, geometry, vae_scale)
        models = _build_models(geometry)
        buffers = _swin_buffers_of(geometry)
    _check_fit(model_path, geometry, unet_config)
    if sample_size is not None:
        # The base's own is where it was trained, not this checkpoint.
        unet_config = {**unet_config, "sample_size": sample_size}
    models[UNET_COMPONENT] = _from_config(UNet2DConditionModel, unet_config)
    expected = {
        name: {to_published_key(name, key, geometry.num_encoders): shape for key, shape in _shapes_of(model).items()}
        for name, model in models.items()
    }
    expected_unet = expected.pop(UNET_COMPONENT)
    expected_models = {key: shape for shapes in expected.values() for key, shape in shapes.items()}
    problems = (
        describe_mismatch(f"'{model_path}'", expected_models | _shapes(buffers), _shapes(published)),
        describe_mismatch(f"'{unet_path}' for the U-Net of the base", expected_unet, _shapes(published_unet)),
    )
    if any(problems):
        raise ValueError(" ".join(filter(None, problems)))
    _check_buffers(model_path, published, buffers)
    components: dict[str, dict[str, torch.Tensor]] = {name: {} for name in models}
    for tensors in (published, published_unet):
        for key in list(tensors):
            tensor = tensors.pop(key)
            if key not in buffers:
                name, ours = from_published_key(key, geometry.num_encoders)
                components[name][ours] = tensor
    return geometry, models, components


def _convert_vae(base: Path, folder: Path, dtype: torch.dtype | None, variant: str | None) -> None:
    vae_class: Any = AutoencoderKL
    try:
        vae = vae_class.from_pretrained(base, subfolder="vae", local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError) as error:
        reason = shorten(str(error), 300)
        raise OSError(f"The VAE of the base in '{base / 'vae'}' cannot be loaded: {reason}") from error
    (folder / "vae").mkdir()
    # Not the loaded one's, whose config names the base's folder.
    _from_config(AutoencoderKL, vae.config).save_config(folder / "vae")
    write_weights(folder / "vae", vae.state_dict(), dtype, variant)


def _write_component(
    folder: Path,
    model: Any,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    variant: str | None,
    advance: Callable[[int], object],
) -> None:
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    folder.mkdir()
    model.save_config(folder)
    write_weights(folder, tensors, dtype, variant)
    advance(num_bytes)


def _write_index(folder: Path) -> None:
    index: dict[str, Any] = {
        "_class_name": "CFLDPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "frame_height": DEEPFASHION_SIZE[0],
        "frame_width": DEEPFASHION_SIZE[1],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index.update({name: [_PACKAGE, _MODEL_CLASSES[name].__name__] for name in MODEL_COMPONENTS})
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_fit(path: Path, geometry: CheckpointGeometry, unet_config: Mapping[str, Any]) -> None:
    widths = tuple(unet_config.get("block_out_channels", (320, 640, 1280, 1280)))
    encoder = geometry.appearance_encoder
    pairs = {
        "prompt width": (geometry.prompt_decoder["dim"], unet_config.get("cross_attention_dim", 1280)),
        "pose residuals' widths": (
            geometry.pose_adapter["block_out_channels"],
            widths[: len(geometry.pose_adapter["block_out_channels"])],
        ),
        "query biases' widths": (
            encoder["query_channels"],
            tuple(widths[::-1][block] for block in encoder["up_block_indices"]),
        ),
    }
    wrong = [f"{name} {ours} for {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if wrong:
        raise ValueError(
            f"'{path}' does not fit the U-Net of the base: {', '.join(wrong)}; use the base the checkpoint was "
            "trained on."
        )


def _check_buffers(path: Path, published: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
    differing = sorted(key for key, buffer in buffers.items() if not torch.equal(published[key].to(buffer), buffer))
    if differing:
        logger.warning(
            "%d Swin buffers in '%s' differ from those that follow from its sizes (first: %s); they are no weights "
            "and the computed ones are used.",
            len(differing),
            path,
            differing[0],
        )


def _check_pipeline_folder(model: Path) -> None:
    if not (model / INDEX_FILE).is_file():
        raise FileNotFoundError(
            f"The model '{model}' is not a local pipeline folder: expected a saved CFLDPipeline with '{INDEX_FILE}'."
        )
    missing = [
        f"{name}/config.json"
        for name in (*MODEL_COMPONENTS, UNET_COMPONENT)
        if not (model / name / "config.json").is_file()
    ]
    if missing:
        raise ValueError(f"The model '{model}' lacks {', '.join(missing)}: expected a saved CFLDPipeline.")


def _read_component(model: Path, name: str, built: Any, variant: str | None) -> dict[str, torch.Tensor]:
    weights = read_weights(model / name, variant)
    problem = describe_mismatch(f"The weights in '{model / name}'", _shapes_of(built), _shapes(weights))
    if problem is not None:
        raise ValueError(problem)
    return weights


def _check_layout_holds(
    models: Mapping[str, Any], geometry: CheckpointGeometry, config: Mapping[str, Any], num_up_blocks: int
) -> None:
    """Read the published layout back before it is written: the same models must come out."""
    shapes = {
        to_published_key(name, key, geometry.num_encoders): shape
        for name, model in models.items()
        for key, shape in _shapes_of(model).items()
    }
    try:
        shapes.update(_shapes(_swin_buffers_of(geometry)))
        found = _build_models(read_geometry(shapes, config, num_up_blocks))
    except (ValueError, LookupError) as error:
        raise ValueError(f"The published layout cannot hold this pipeline: {error}") from error
    for name, built in found.items():
        if _shapes_of(built) != _shapes_of(models[name]):
            raise ValueError(f"The published layout cannot hold this {name}: its weights have other names or shapes.")
        if name == "source_encoder":
            continue  # another name of timm's may stand for the same sizes
        for key, value in built.config.items():
            if key.startswith("_") or key == "feature_stages":  # of diffusers; or looked at before, and None is all
                continue
            wanted = models[name].config[key]
            if key == "feature_size":  # one number for a square
                value, wanted = as_pair(value), as_pair(wanted)
            if _plain(value) != _plain(wanted):
                raise ValueError(
                    f"The published layout cannot hold this {name}: its `{key}` must be {value!r}, got {wanted!r}."
                )


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_published(model: Path) -> None:
    """Refuse what the published layout has no place for, and tell what it does not keep."""
    scheduler = model / "scheduler" / "scheduler_config.json"
    kind = read_json(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else "epsilon"
    if kind != "epsilon":
        raise ValueError(
            f"The published layout is of models that predict the noise ('epsilon'), got '{kind}' in '{scheduler}': it "
            "cannot hold this pipeline."
        )
    index = read_json(model / INDEX_FILE)
    frame = index.get("frame_height", DEEPFASHION_SIZE[0]), index.get("frame_width", DEEPFASHION_SIZE[1])
    if None in frame or not has_shape(frame, DEEPFASHION_SIZE):
        logger.warning(
            "The pipeline's frame of photos, %s, is not kept: what is converted back is for photos of %d:%d. Set "
            "`frame_height` and `frame_width` when you load it.",
            frame,
            *DEEPFASHION_SIZE,
        )


def _geometry_of(models: Mapping[str, Any]) -> CheckpointGeometry:
    swin = models["source_encoder"]
    backbone = swin.backbone
    blocks = [stage.blocks for stage in backbone.layers]
    source_encoder = {
        "image_size": swin.image_size,
        "window_size": max(blocks[0][0].attn.window_size),
        "embed_dim": swin.feature_channels[0],
        "depths": tuple(len(stage) for stage in blocks),
        "num_heads": tuple(stage[0].attn.num_heads for stage in blocks),
        "patch_size": swin.feature_strides[0],
        "drop_path_rate": swin.config.drop_path_rate,
    }
    others = {
        name: {key: value for key, value in model.config.items() if not key.startswith("_")}
        for name, model in models.items()
        if name != "source_encoder"
    }
    encoder = others["appearance_encoder"]
    blocks_served = [int(block) for block in encoder["up_block_indices"]]
    if blocks_served != sorted(blocks_served, reverse=True):
        raise ValueError(
            "The published layout lists the query bias encoders from the U-Net's end to its beginning, got "
            f"`up_block_indices` {tuple(blocks_served)}: it cannot hold this appearance encoder."
        )
    stages = models["appearance_encoder"].stages
    if stages != tuple(range(1, len(stages) + 1)):
        raise ValueError(
            "In the published layout the query bias encoders read the source's feature maps from the finest on, got "
            f"`feature_stages` {stages}: it cannot hold this appearance encoder."
        )
    return CheckpointGeometry(source_encoder=source_encoder, **others)
