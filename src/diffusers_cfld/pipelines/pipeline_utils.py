"""What CFLD's pipelines share: components, encoding, noise prediction, decoding and saving, but no `__call__`."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    ControlNetModel,
    DiffusionPipeline,
    MultiAdapter,
    MultiControlNetModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.loaders import IPAdapterMixin, StableDiffusionLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline, rescale_noise_cfg
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import create_repo, file_exists, upload_folder
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from typing_extensions import Self

from ..image_utils import as_pair, unsquash_size
from ..io_utils import prepare_saving, write_file
from ..models.appearance_encoder import AppearanceEncoder
from ..models.attention_processor import fit_pose_residuals, fit_query_biases, hybrid_granularity_attention
from ..models.pose_adapter import PoseAdapter
from ..models.prompt_decoder import PerceptionRefinedDecoder
from ..models.source_encoder import SwinImageEncoder
from ..pose.estimation import PoseEstimator
from ..pose.formats import DEEPFASHION_SIZE
from ..pose.keypoints import Keypoints
from ..processors.cropping import has_shape
from ..processors.pose_map import PoseInput, PoseProcessor, is_pose_map, read_poses, split_poses
from ..processors.source_image import ImageInput, SourceImageProcessor, split_images
from .checks import check_components, warn_of_photos
from .control import evaluate_controlnet
from .guidance import BranchConditions, GuidanceBranch, combine_guidance, guidance_weights, micro_batches
from .model_card import make_model_card
from .options import Generators
from .pipeline_output import Appearance, PoseFeatures


class CFLDPipelineBase(DiffusionPipeline, StableDiffusionMixin, StableDiffusionLoraLoaderMixin, IPAdapterMixin):
    """Components and steps of CFLD's pipelines; see [`CFLDPipeline`] for arguments and attributes."""

    # Without the ControlNet, as in diffusers: it stays on the device, since each step needs both it and the U-Net.
    model_cpu_offload_seq = (
        "source_encoder->prompt_decoder->appearance_encoder->pose_adapter->image_encoder->adapter->unet->vae"
    )
    _optional_components = ["feature_extractor", "image_encoder", "controlnet", "adapter"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "null_prompt_embeds"]

    # Only the U-Net can have LoRAs, because CFLD has no text encoder.
    _lora_loadable_modules = ["unet"]
    text_encoder = None

    # Steps that the Stable Diffusion pipeline takes in the same way, most of them for IP-Adapters.
    encode_image = StableDiffusionPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionPipeline.prepare_ip_adapter_image_embeds
    prepare_extra_step_kwargs = StableDiffusionPipeline.prepare_extra_step_kwargs
    get_guidance_scale_embedding = StableDiffusionPipeline.get_guidance_scale_embedding

    # Arguments and state of the running call that it keeps in the same way. A callback may set `_interrupt`.
    guidance_rescale = StableDiffusionPipeline.guidance_rescale
    cross_attention_kwargs = StableDiffusionPipeline.cross_attention_kwargs
    num_timesteps = StableDiffusionPipeline.num_timesteps
    interrupt = StableDiffusionPipeline.interrupt

    def __init__(
        self,
        vae: AutoencoderKL | AsymmetricAutoencoderKL | AutoencoderTiny | ConsistencyDecoderVAE,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        source_encoder: SwinImageEncoder,
        prompt_decoder: PerceptionRefinedDecoder,
        appearance_encoder: AppearanceEncoder,
        pose_adapter: PoseAdapter,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        controlnet: ControlNetModel | list[ControlNetModel] | MultiControlNetModel | None = None,
        adapter: T2IAdapter | list[T2IAdapter] | MultiAdapter | None = None,
        frame_height: int | None = DEEPFASHION_SIZE[0],
        frame_width: int | None = DEEPFASHION_SIZE[1],
    ) -> None:
        super().__init__()
        controlnet = MultiControlNetModel(controlnet) if isinstance(controlnet, (list, tuple)) else controlnet
        adapter = MultiAdapter(adapter) if isinstance(adapter, (list, tuple)) else adapter
        sides = [side for side in (frame_height, frame_width) if side is not None]
        if len(sides) == 1 or min(sides, default=1) < 1:
            raise ValueError(
                f"`frame_height` and `frame_width` must both be positive numbers or both be None, got {frame_height} "
                f"and {frame_width}."
            )
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            source_encoder=source_encoder,
            prompt_decoder=prompt_decoder,
            appearance_encoder=appearance_encoder,
            pose_adapter=pose_adapter,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            controlnet=controlnet,
            adapter=adapter,
        )
        # Two numbers, because diffusers would mistake a list in `model_index.json` for a component.
        self.register_to_config(frame_height=frame_height, frame_width=frame_width)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        check_components(self)
        sample_size = as_pair(unet.config.sample_size) if unet is not None else (64, 64)
        self.target_size = (sample_size[0] * self.vae_scale_factor, sample_size[1] * self.vae_scale_factor)
        self.image_shape = None if frame_height is None or frame_width is None else (frame_height, frame_width)
        # The U-Net sees images squashed to `target_size`; in this size people have their own proportions.
        self.default_output_size = unsquash_size(self.target_size, self.image_shape or self.target_size)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        height, width = source_encoder.image_size if source_encoder is not None else (256, 256)
        self.source_image_processor = SourceImageProcessor(height=height, width=width, image_shape=self.image_shape)
        height, width = _pose_map_size(pose_adapter, sample_size) if pose_adapter is not None else (256, 256)
        self.pose_processor = PoseProcessor(height=height, width=width, image_shape=self.image_shape)
        self.pose_estimator: PoseEstimator | None = None

    # Overrides of what diffusers does. Those that keep a promise of README or recipes name it.

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Make a pipeline of this class that shares the components of another one.

        Args:
            pipeline: The other pipeline. Its `pose_estimator` is kept.
            **kwargs: Components and options of the constructor that replace those of the other pipeline; `dtype` casts
                the components.

        Returns:
            The new pipeline.

        Raises:
            TypeError: A component is missing.
        """
        # Recipes: `from_pipe` shares components as they are. diffusers' own casts all of them to float32.
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        names = inspect.signature(cls.__init__).parameters
        found = {**pipeline.config, **pipeline.components}
        made = cls(**{**{name: value for name, value in found.items() if name in names}, **kwargs})
        made.pose_estimator = getattr(pipeline, "pose_estimator", None)
        return made if dtype is None else made.to(dtype=dtype)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save the pipeline, with a model card unless the folder or the repository has one.

        Args:
            save_directory: The folder.
            safe_serialization: Write safetensors files.
            variant: Variant in the names of the weights' files, for example `"fp16"`.
            max_shard_size: Split larger weights into files of this size, for example `"5GB"`.
            push_to_hub: Also upload the folder to the Hub.
            repo_id: Repository on the Hub; by default the folder's name, in your namespace.
            private: Whether a new repository is private.
            token: Hub token.
            commit_message: Message of the upload.
            create_pr: Open a pull request instead of committing.
            **kwargs: Passed on to `DiffusionPipeline.save_pretrained`.

        Returns:
            With `push_to_hub`, what `huggingface_hub.upload_folder` returns.

        Raises:
            ValueError: A LoRA is attached, with layers that `from_pretrained` could not load.
        """
        # Promises: what is saved can be loaded, and the card on the Hub has code that loads it.
        if getattr(self.unet, "peft_config", None):
            raise ValueError(
                "The U-Net cannot be saved while a LoRA is attached to it: call `fuse_lora()` if you want to keep its "
                "effect, then `unload_lora_weights()`, and save again."
            )
        # `pipe.controlnet = net` alone would not be saved.
        self.register_modules(**{name: getattr(self, name) for name in self._optional_components})
        folder = Path(save_directory)
        if push_to_hub:
            repo_id = create_repo(repo_id or folder.name, exist_ok=True, private=private, token=token).repo_id
        options: dict[str, Any] = {"safe_serialization": safe_serialization, "variant": variant}
        options["max_shard_size"] = max_shard_size
        for name, component in self.components.items():
            if isinstance(component, nn.Module):
                prepare_saving(component, folder / name, **options)
        super().save_pretrained(os.fspath(folder), **options, **kwargs)
        card = folder / "README.md"
        if not card.exists():
            write_file(card, make_model_card(self, repo_id or folder.name, variant=variant).encode())
        if not push_to_hub:
            return None
        has_card = file_exists(repo_id, "README.md", token=token)
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=["README.md"] if has_card else None,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )

    def to_json_string(self) -> str:
        """Write `model_index.json`.

        Returns:
            The content, without `controlnet` and `adapter` if there are none.
        """
        # On-disk format: such a folder is the same as before there were these two.
        index = json.loads(super().to_json_string())
        unused = [name for name in ("controlnet", "adapter") if index.get(name) == [None, None]]
        return json.dumps({name: value for name, value in index.items() if name not in unused}, indent=2) + "\n"

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the pipeline to the Hub, with a model card unless the repository has one.

        Args:
            repo_id: The repository; created if it does not exist.
            **kwargs: Passed on to [`~CFLDPipelineBase.save_pretrained`], for example `token`, `private` and `variant`.

        Returns:
            What `huggingface_hub.upload_folder` returns.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, **kwargs)

    @classmethod
    def load_lora_into_text_encoder(cls, *args: Any, **kwargs: Any) -> None:
        """Ignore the text encoder's part of a LoRA file.

        Args:
            *args: Ignored.
            **kwargs: Ignored.
        """

    def fuse_lora(self, components: list[str] | None = None, *args: Any, **kwargs: Any) -> None:
        """Fuse the loaded LoRAs into the U-Net's weights.

        Args:
            components: `["unet"]`, which is the default and the only component that can have LoRAs.
            *args: Passed on to `StableDiffusionLoraLoaderMixin.fuse_lora`.
            **kwargs: Likewise.
        """
        super().fuse_lora(components or ["unet"], *args, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, *args: Any, **kwargs: Any) -> None:
        """Take fused LoRAs out of the U-Net's weights again.

        Args:
            components: `["unet"]`, which is the default and the only component that can have LoRAs.
            *args: Passed on to `StableDiffusionLoraLoaderMixin.unfuse_lora`.
            **kwargs: Likewise.
        """
        super().unfuse_lora(components or ["unet"], *args, **kwargs)

    # State of the running call.

    @property
    def guidance_scale(self) -> float:
        """The scale of both guidances, unless one is set separately."""
        return self._guidance_scale

    @property
    def pose_guidance_scale(self) -> float:
        """w_pose of Eq. 7 in the running call."""
        return self._equal_guidance_scale if self._pose_guidance_scale is None else self._pose_guidance_scale

    @property
    def appearance_guidance_scale(self) -> float:
        """w_app of Eq. 7 in the running call."""
        scale = self._appearance_guidance_scale
        return self._equal_guidance_scale if scale is None else scale

    @property
    def _equal_guidance_scale(self) -> float:
        # A U-Net that gets the guidance scale as an input (LCM) makes a guided prediction in one evaluation.
        return 1.0 if self.unet.config.time_cond_proj_dim is not None else max(self._guidance_scale, 1.0)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether steps with guidance need other predictions besides the fully conditioned one."""
        return self.pose_guidance_scale != 1 or self.appearance_guidance_scale != 1

    # The steps of a call, in their order.

    @torch.no_grad()
    def encode_appearance(self, image: ImageInput | Appearance, micro_batch_size: int | None = None) -> Appearance:
        """Encode source images once, to be used for many poses.

        Args:
            image: As in the pipeline's call. An [`Appearance`] is returned as it is.
            micro_batch_size: How many images to process at once; None for all.

        Returns:
            The prompts and query biases, on the execution device.

        Raises:
            TypeError: See [`SourceImageProcessor.preprocess`].
            OSError: A file or URL cannot be read as an image.
            ValueError: See [`SourceImageProcessor.preprocess`].
        """
        if isinstance(image, Appearance):
            return image
        if isinstance(image, (str, os.PathLike, list, tuple)):
            image = split_images(image)  # opens each file once
        warn_of_photos(self, image)
        pixels = self.source_image_processor.preprocess(image).to(self._execution_device, self.source_encoder.dtype)
        dtype = self.appearance_encoder.dtype
        encoded = []
        for rows in micro_batches(len(pixels), micro_batch_size):
            feature_maps = self.source_encoder(pixels[rows]).feature_maps
            coarsest = list(feature_maps.values())[-1]
            prompts = self.prompt_decoder(coarsest.to(self.prompt_decoder.dtype))
            query_biases = self.appearance_encoder({k: v.to(dtype) for k, v in feature_maps.items()}).query_biases
            encoded.append(Appearance(prompts.prompt_embeds, prompts.null_prompt_embeds, query_biases))
        return Appearance.cat(encoded)

    @torch.no_grad()
    def encode_pose(self, pose: PoseInput | PoseFeatures, micro_batch_size: int | None = None) -> PoseFeatures:
        """Encode target poses once, to be used for many sources.

        Args:
            pose: As in the pipeline's call. [`PoseFeatures`] are returned as they are.
            micro_batch_size: How many poses to process at once; None for all.

        Returns:
            The pose adapter's residuals, on the execution device.

        Raises:
            TypeError: See [`PoseProcessor.preprocess`].
            ValueError: See [`PoseProcessor.preprocess`] and [`PoseAdapter.forward`]; or a pose is an image, but there
                is no `pose_estimator` or nobody in the image.
            OSError: A file cannot be read.
        """
        if isinstance(pose, PoseFeatures):
            return pose
        poses = read_poses(pose, self.pose_estimator, shape=self.image_shape)
        pose_map = self.pose_processor.preprocess(poses).to(self._execution_device, self.pose_adapter.dtype)
        parts = [
            self.pose_adapter(pose_map[rows]).residuals for rows in micro_batches(len(pose_map), micro_batch_size)
        ]
        return PoseFeatures({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def read_reference_pose(self, pose: PoseInput | PoseFeatures, size: tuple[int, int]) -> Any:
        """Read the pose of the person in a reference image, and move it to where padding puts that person.

        Args:
            pose: The pose, measured on the image, in any form that the pipeline's call takes.
            size: (height, width) of the image, pixels.

        Returns:
            The pose, for [`~CFLDPipelineBase.encode_pose`].

        Raises:
            ValueError: There are several poses, the pose was measured on an image of another shape, or it is a pose
                map although the image is padded.
        """
        if isinstance(pose, PoseFeatures):
            return pose
        poses = split_poses(read_poses(pose, self.pose_estimator, shape=None))
        if len(poses) != 1:
            raise ValueError(f"`pose` must be a single pose, that of the person in the image, got {len(poses)}.")
        is_whole = self.pose_processor.choose_crop(size).is_whole_image
        if is_pose_map(poses[0]):
            if not is_whole:
                raise ValueError(
                    f"`pose` must be keypoints or `encode_pose(keypoints)`: the image of {size[0]}x{size[1]} (height "
                    "x width) is padded to the model's aspect ratio, which is not possible for a pose map."
                )
            return poses[0]
        keypoints = Keypoints.from_any(poses[0])
        if is_whole and self.pose_processor.choose_crop(keypoints.size).is_whole_image:
            return keypoints
        if not has_shape(keypoints.size, size):
            raise ValueError(
                f"`pose` was measured on an image of {keypoints.size[0]}x{keypoints.size[1]} (height x width), but "
                f"this image is {size[0]}x{size[1]}: measure the pose on this image, and pass an array as "
                f"`Keypoints.from_any(pose, size={size})`."
            )
        # The pose must get the crop of its image, which is not padded if it has the encoder's own size.
        return keypoints.rescale(size)

    def encode_reference_image(self, image: PIL.Image.Image, height: int, width: int) -> torch.Tensor:
        """Encode a reference image, padded and squashed to the generated size like its pose.

        Args:
            image: RGB, upright.
            height: Height of the generated image in pixels.
            width: Width of the generated image in pixels.

        Returns:
            (1, C, h, w), the mode of the latents' distribution.
        """
        crop = self.pose_processor.choose_crop((image.height, image.width))
        pixels = self.image_processor.preprocess(crop.crop(image), height=height, width=width)
        encoded = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents * self.vae.config.scaling_factor).to(self.unet.dtype)

    def prepare_conditions(
        self,
        appearance: Appearance,
        pose_features: PoseFeatures,
        height: int,
        width: int,
        num_images_per_prompt: int = 1,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
    ) -> BranchConditions:
        """Convert the encoded conditions to the latents' size and the U-Net's dtype, and pair sources with poses.

        Args:
            appearance: Sources, as many as poses, or one.
            pose_features: Poses, as many as sources, or one.
            height: Height of the generated image in pixels.
            width: Width of the generated image in pixels.
            num_images_per_prompt: Images for each pair of source and pose.
            ip_adapter_image: As in the pipeline's call.
            ip_adapter_image_embeds: As in the pipeline's call.

        Returns:
            The conditions of all samples; the samples of one pair are next to each other.

        Raises:
            ValueError: The numbers of sources, poses and embeddings do not fit together.
        """
        sources, poses = len(appearance), len(pose_features)
        if sources != poses and 1 not in (sources, poses):
            raise ValueError(
                "There must be as many images as poses, or one image, or one pose, got "
                f"{sources} images and {poses} poses."
            )
        batch_size = max(sources, poses) * num_images_per_prompt
        counts = sorted({1, max(sources, poses), batch_size})
        latent_size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        to_unet = partial(torch.Tensor.to, device=self._execution_device, dtype=self.unet.dtype)
        timestep_cond, dim = None, self.unet.config.time_cond_proj_dim
        if dim is not None:
            scale = torch.tensor([self.guidance_scale - 1.0])
            timestep_cond = to_unet(self.get_guidance_scale_embedding(scale, embedding_dim=dim))
        return BranchConditions(
            batch_size=batch_size,
            prompt_embeds=to_unet(appearance.prompt_embeds),
            null_prompt_embeds=to_unet(appearance.null_prompt_embeds),
            pose_residuals=fit_pose_residuals(
                {name: to_unet(residual) for name, residual in pose_features.residuals.items()}, latent_size
            ),
            query_biases=fit_query_biases(
                {name: to_unet(bias) for name, bias in appearance.query_biases.items()},
                latent_size,
                len(self.unet.config.up_block_types),
            ),
            image_embeds=self.prepare_image_embeds(ip_adapter_image, ip_adapter_image_embeds, counts),
            timestep_cond=timestep_cond,
        )

    def prepare_image_embeds(
        self, image: PipelineImageInput | None, image_embeds: list[torch.Tensor] | None, counts: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Prepare the embeddings of IP-Adapters.

        Args:
            image: `ip_adapter_image` of the pipeline's call.
            image_embeds: `ip_adapter_image_embeds` of the pipeline's call.
            counts: The numbers of embeddings that fit the batch.

        Returns:
            For each adapter, the negative and the positive embeddings, (n, ...) each; empty without adapters.

        Raises:
            ValueError: The number of embeddings does not fit.
        """
        if image is None and image_embeds is None:
            return []
        # As in Stable Diffusion, embeddings that are passed without guidance are only the positive ones.
        guided, device = self.do_classifier_free_guidance, self._execution_device
        if image_embeds is None:
            image_embeds = self.prepare_ip_adapter_image_embeds(image, None, device, 1, guided)
        pairs = []
        for embed in image_embeds:
            count, rest = divmod(embed.shape[0], 2 if guided else 1)
            if rest or count not in counts:
                raise ValueError(
                    f"`ip_adapter_image_embeds` must hold {' or '.join(map(str, counts))} embeddings per adapter, and "
                    f"with guidance the same number of negative ones before them, got {embed.shape[0]} in all with "
                    f"guidance {'on' if guided else 'off'}."
                )
            embed = embed.to(device, self.unet.dtype)
            pairs.append(tuple(embed.chunk(2)) if guided else (torch.zeros_like(embed), embed))
        return pairs

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw or check the starting noise, and scale it as the scheduler needs it.

        Args:
            batch_size: B, number of samples.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            dtype: Data type of the result.
            device: Device of the result.
            generator: One for the batch, or a list with one per sample.
            latents: (B, C, h, w) standard-normal noise to use instead of drawing some.

        Returns:
            (B, C, h, w) with h = height / `vae_scale_factor`.

        Raises:
            ValueError: A list of generators does not have one per sample, or `latents` has the wrong shape.
        """
        factor = self.vae_scale_factor
        shape = (batch_size, self.unet.config.in_channels, height // factor, width // factor)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must be one generator or a list with one per image, got {len(generator)} for "
                f"{batch_size} images."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device=device, dtype=dtype) * self.scheduler.init_noise_sigma

    def predict_branches(
        self,
        latent_model_input: torch.Tensor,
        timestep: torch.Tensor,
        conditions: BranchConditions,
        branches: tuple[GuidanceBranch, ...],
        rows: slice,
    ) -> tuple[torch.Tensor, ...]:
        """Evaluate the U-Net for some guidance branches of some samples, in one batch.

        Args:
            latent_model_input: (B, C, h, w), scaled by the scheduler.
            timestep: The timestep.
            conditions: Those of all B samples.
            branches: Which branches to evaluate.
            rows: Which samples to evaluate.

        Returns:
            One prediction (number of samples, C, h, w) per branch.
        """
        batch = conditions.batch(branches, rows)
        sample = torch.cat([latent_model_input[rows]] * len(branches))
        control = evaluate_controlnet(self.controlnet, sample, timestep, batch, conditions.control_scales)
        # Only around the U-Net's forward, so that a callback finds the U-Net as the user left it.
        with hybrid_granularity_attention(self.unet, batch.query_biases):
            noise_pred = self.unet(
                sample,
                timestep,
                encoder_hidden_states=batch.encoder_hidden_states,
                timestep_cond=conditions.timestep_cond,
                cross_attention_kwargs=self.cross_attention_kwargs,
                down_intrablock_additional_residuals=list(batch.residuals),  # the U-Net empties the list
                **control,
                added_cond_kwargs={"image_embeds": batch.image_embeds} if batch.image_embeds else None,
                return_dict=False,
            )[0]
        predictions: tuple[torch.Tensor, ...] = noise_pred.chunk(len(branches))
        return predictions

    def predict_noise(
        self,
        latent_model_input: torch.Tensor,
        timestep: torch.Tensor,
        conditions: BranchConditions,
        micro_batch_size: int | None = None,
    ) -> torch.Tensor:
        """Predict the noise with the running call's guidance, Eq. 7.

        Args:
            latent_model_input: (B, C, h, w), scaled by the scheduler.
            timestep: The timestep.
            conditions: Those of all B samples.
            micro_batch_size: How many samples to process at once; None for all.

        Returns:
            (B, C, h, w).
        """
        # A callback may change a scale between two steps.
        scales = (self.pose_guidance_scale, self.appearance_guidance_scale) if conditions.is_guided else (1.0, 1.0)
        weights = guidance_weights(*scales)
        guided = []
        for rows in micro_batches(len(latent_model_input), micro_batch_size):
            noise_preds = self.predict_branches(latent_model_input, timestep, conditions, tuple(weights), rows)
            noise_pred = combine_guidance(noise_preds, tuple(weights.values()))
            if len(weights) > 1 and self.guidance_rescale > 0.0:
                noise_pred = rescale_noise_cfg(noise_pred, noise_preds[-1], guidance_rescale=self.guidance_rescale)
            guided.append(noise_pred)
        return guided[0] if len(guided) == 1 else torch.cat(guided)

    def decode_latents(
        self,
        latents: torch.Tensor,
        output_size: tuple[int, int] | None = None,
        generator: Generators = None,
        micro_batch_size: int | None = None,
    ) -> torch.Tensor:
        """Decode latents to images, and resize them as evaluations of pose transfer do.

        Args:
            latents: (B, C, h, w), scaled as the U-Net sees them.
            output_size: (height, width) in pixels of a final bicubic resize with antialiasing, or None for no resize.
            generator: For decoders that draw random numbers (`ConsistencyDecoderVAE`).
            micro_batch_size: How many images to process at once; None for all.

        Returns:
            (B, 3, H, W), [0, 1].
        """
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images = []
        for rows in micro_batches(len(latents), micro_batch_size):
            generators = generator[rows] if isinstance(generator, list) else generator
            image = self.vae.decode(latents[rows], return_dict=False, generator=generators)[0]
            image = (image / 2 + 0.5).clamp(0, 1)
            if output_size is not None and tuple(image.shape[2:]) != tuple(output_size):
                # In float32, since not all devices can do this in half precision.
                resized = F.interpolate(
                    image.float(), size=tuple(output_size), mode="bicubic", antialias=True, align_corners=False
                )
                image = resized.clamp(0, 1).to(image.dtype)
            images.append(image)
        return images[0] if len(images) == 1 else torch.cat(images)


def _pose_map_size(pose_adapter: PoseAdapter, sample_size: tuple[int, int]) -> tuple[int, int]:
    """The size in pixels of a pose map whose residuals need no resizing for latents of `sample_size`."""
    config = pose_adapter.config
    # The adapter halves its features one time fewer than it has widths.
    multiple = 2 ** (len(config.block_out_channels) - 1)
    height, width = (-(-side // multiple) * multiple * config.unshuffle_factor for side in sample_size)
    return height, width
