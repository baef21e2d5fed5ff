"""Pose transfer: one photo of a person and a target pose in, that person in that pose out.

Paper: arXiv:2402.18078, Fig. 2 and Eq. 7. Official code: `pose_transfer_test.py` of YanzuoLu/CFLD @ f2ea2a7.
"""

import inspect
import os
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    UNet2DConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.loaders import IPAdapterMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
    StableDiffusionPipeline,
    rescale_noise_cfg,
    retrieve_timesteps,
)
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ..image_utils import as_pair
from ..models.appearance_encoder import AppearanceEncoder
from ..models.attention_processor import fit_pose_residuals, fit_query_biases, hybrid_granularity_attention
from ..models.pose_adapter import PoseAdapter
from ..models.prompt_decoder import PerceptionRefinedDecoder
from ..models.source_encoder import SwinImageEncoder
from ..pose.estimation import PoseEstimator
from ..pose.keypoints import Keypoints
from ..processors.cropping import DEEPFASHION_SIZE, CropWindow, has_shape
from ..processors.pose_map import PoseProcessor, is_pose_map, read_poses, split_poses
from ..processors.source_image import SourceImageProcessor
from .branch_batching import (
    batch_image_embeds,
    batch_prompts,
    batch_query_bias,
    batch_residual,
    broadcast_batch,
    repeat_to,
)
from .calling import one_call_at_a_time
from .checks import (
    check_appearance,
    check_components,
    check_frame,
    check_pose_features,
    require_components,
)
from .guidance import GuidanceBranch, check_guidance_scale, combine_guidance, guidance_weights
from .hub_card import HubCardMixin
from .input_checks import check_fractions, check_generator, check_ip_adapter_inputs, check_numbers
from .loading import ComponentSharingMixin, check_frame_options, explain_missing_variant
from .lora import UNetLoraLoaderMixin
from .micro_batches import call_in_micro_batches
from .pipeline_output import Appearance, CFLDPipelineOutput, PoseFeatures


class CFLDPipeline(HubCardMixin, ComponentSharingMixin, StableDiffusionMixin, UNetLoraLoaderMixin, IPAdapterMixin):
    """Put the person of a photo into another pose with CFLD (Coarse-to-Fine Latent Diffusion).

    Inherits from [`DiffusionPipeline`] saving, loading, offloading and device placement, from
    [`StableDiffusionMixin`] FreeU and fused projections, and takes LoRAs ([`UNetLoraLoaderMixin`]) and IP-Adapters
    ([`IPAdapterMixin`]) made for Stable Diffusion 1.5's U-Net. The U-Net is the stock one; its attention processors
    are changed for the length of a call only.

    Args:
        vae: Autoencoder between images and latents.
        unet: The denoising U-Net, whose keys and values in the up blocks' cross-attentions CFLD trains.
        scheduler: Any scheduler of diffusers for epsilon or v prediction; the published one is `DDPMScheduler`.
        source_encoder: S, features of the source image.
        prompt_decoder: D, the coarse-grained prompt from the coarsest features; holds the null prompt.
        appearance_encoder: A, the query biases from the fine features.
        pose_adapter: P, the residuals of the target pose.
        feature_extractor: Only for an IP-Adapter: preprocessing of its image.
        image_encoder: Only for an IP-Adapter: its CLIP vision model.
        frame_height: With `frame_width` the shape that the photos of the training had, at any size; photos and poses
            of another shape are padded to it. None: everything is squashed. Saved in `model_index.json`.
        frame_width: See `frame_height`.

    Attributes:
        pose_estimator: Finds the poses of pictures that are passed as `pose`; see
            [`diffusers_cfld.pose_estimation`]. None until you set one.

    Raises:
        ValueError: Components do not fit together, e.g. a prompt width other than the U-Net's.
    """

    model_cpu_offload_seq = (
        "source_encoder->prompt_decoder->appearance_encoder->pose_adapter->image_encoder->unet->vae"
    )
    _optional_components = ["feature_extractor", "image_encoder"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "null_prompt_embeds"]

    # The IP-Adapter's own preparation, as the Stable Diffusion pipeline does it.
    encode_image = StableDiffusionPipeline.encode_image
    prepare_ip_adapter_image_embeds = StableDiffusionPipeline.prepare_ip_adapter_image_embeds

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
        frame_height: int | None = DEEPFASHION_SIZE[0],
        frame_width: int | None = DEEPFASHION_SIZE[1],
    ) -> None:
        super().__init__()
        check_components(vae, unet, source_encoder, prompt_decoder, appearance_encoder, pose_adapter)
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
        )
        check_frame(frame_height, frame_width)
        frame = None if frame_height is None or frame_width is None else (int(frame_height), int(frame_width))
        # Two numbers, since diffusers takes a list in `model_index.json` for a component.
        self.register_to_config(frame_height=frame and frame[0], frame_width=frame and frame[1])
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        height, width = source_encoder.image_size if source_encoder is not None else (256, 256)
        self.source_image_processor = SourceImageProcessor(height=height, width=width, image_shape=frame)
        height, width = self._trained_pose_size()
        self.pose_processor = PoseProcessor(height=height, width=width, image_shape=frame)
        self.pose_estimator: PoseEstimator | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a pipeline from a folder or from the Hub, as `DiffusionPipeline.from_pretrained` does.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            **kwargs: As there, e.g. `dtype`, `variant`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Returns:
            The pipeline.

        Raises:
            OSError: Something is not there; where a folder has variants only, the message names them.
            ValueError: Only one of `frame_height` and `frame_width` is given.
        """
        check_frame_options(kwargs)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            if kwargs.get("variant") is None:
                explain_missing_variant(pretrained_model_name_or_path, error)
            raise

    def _trained_pose_size(self) -> tuple[int, int]:
        """Pose pixels of the map whose residuals need no resizing at the U-Net's own sample size."""
        if self.unet is None or self.pose_adapter is None:
            return 256, 256
        config = self.pose_adapter.config
        # The pose adapter halves its features once less than it has widths.
        multiple = 2 ** (len(config.block_out_channels) - 1)
        height, width = (-(-side // multiple) * multiple for side in self._sample_size())
        return height * config.unshuffle_factor, width * config.unshuffle_factor

    def _sample_size(self) -> tuple[int, int]:
        """Height and width of the latents that the U-Net was trained on."""
        require_components(self, "unet")
        return as_pair(self.unet.config.sample_size)

    def _choose_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """The generated size, with that of the training where a side is not given."""
        if height is None or width is None:
            default_height, default_width = self.target_size
            height, width = default_height if height is None else height, default_width if width is None else width
        return height, width

    @property
    def target_size(self) -> tuple[int, int]:
        """Height and width of pictures that are made without `height` and `width`: those of the training, pixels."""
        height, width = self._sample_size()
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width) whose aspect ratio the photos of the training had; None: any was squashed."""
        shape: tuple[int, int] | None = self.pose_processor.config["image_shape"]
        return shape

    @property
    def guidance_scale(self) -> float:
        """The scale of both guidances where neither is set on its own."""
        return self._guidance_scale

    @property
    def pose_guidance_scale(self) -> float:
        """w_pose of Eq. 7 in the running call."""
        return self._guidance_scale if self._pose_guidance_scale is None else self._pose_guidance_scale

    @property
    def appearance_guidance_scale(self) -> float:
        """w_app of Eq. 7 in the running call."""
        return self._guidance_scale if self._appearance_guidance_scale is None else self._appearance_guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """Rescaling of the guided prediction in the running call."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running step needs more than the fully conditioned prediction."""
        return set(guidance_weights(self.pose_guidance_scale, self.appearance_guidance_scale)) != {GuidanceBranch.FULL}

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Arguments of the attention processors in the running call."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the running call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    @torch.no_grad()
    def encode_appearance(self, image: PipelineImageInput | Appearance) -> Appearance:
        """Encode source images once, to be used for many poses.

        Args:
            image: As in `__call__`. An [`Appearance`] is returned as it is.

        Returns:
            The prompts and query biases, on the execution device.

        Raises:
            TypeError: As [`SourceImageProcessor.preprocess`].
            ValueError: As [`SourceImageProcessor.preprocess`]; or a component is missing.
        """
        if isinstance(image, Appearance):
            return image
        require_components(self, "source_encoder", "prompt_decoder", "appearance_encoder")
        pixels = self.source_image_processor.preprocess(image)
        pixels = pixels.to(self._execution_device, self.source_encoder.dtype)
        feature_maps = self.source_encoder(pixels).feature_maps
        coarsest = list(feature_maps.values())[-1]
        prompts = self.prompt_decoder(coarsest.to(self.prompt_decoder.dtype))
        dtype = self.appearance_encoder.dtype
        query_biases = self.appearance_encoder({k: v.to(dtype) for k, v in feature_maps.items()}).query_biases
        return Appearance(prompts.prompt_embeds, prompts.null_prompt_embeds, query_biases)

    @torch.no_grad()
    def encode_pose(self, pose: Any) -> PoseFeatures:
        """Encode target poses once, to be used for many sources.

        Args:
            pose: As in `__call__`. [`PoseFeatures`] are returned as they are.

        Returns:
            The pose adapter's residuals, on the execution device.

        Raises:
            TypeError: As [`PoseProcessor.preprocess`].
            ValueError: As [`PoseProcessor.preprocess`] and [`PoseAdapter.forward`]; or a pose is a picture, and there
                is no `pose_estimator`, or nobody in it.
            OSError: A file cannot be read.
        """
        if isinstance(pose, PoseFeatures):
            check_pose_features(pose, self.unet)
            return pose
        require_components(self, "pose_adapter")
        poses = read_poses(pose, self.pose_estimator, shape=self.image_shape)
        pose_map = self.pose_processor.preprocess(poses).to(self._execution_device, self.pose_adapter.dtype)
        return PoseFeatures(self.pose_adapter(pose_map).residuals)

    def check_inputs(
        self,
        image: Any,
        pose: Any,
        appearance: Any,
        height: int,
        width: int,
        num_inference_steps: int,
        num_images_per_prompt: int,
        output_type: str,
        output_size: tuple[int, int] | None,
        callback_on_step_end: Any,
        callback_on_step_end_tensor_inputs: list[str],
        ip_adapter_image: Any,
        ip_adapter_image_embeds: Any,
    ) -> None:
        """Check the arguments of `__call__` that need no tensor to be looked at.

        Args:
            image: As in `__call__`.
            pose: As in `__call__`.
            appearance: As in `__call__`.
            height: As in `__call__`, defaults filled in.
            width: As in `__call__`, defaults filled in.
            num_inference_steps: As in `__call__`.
            num_images_per_prompt: As in `__call__`.
            output_type: As in `__call__`.
            output_size: As in `__call__`.
            callback_on_step_end: As in `__call__`.
            callback_on_step_end_tensor_inputs: As in `__call__`.
            ip_adapter_image: As in `__call__`.
            ip_adapter_image_embeds: As in `__call__`.

        Raises:
            TypeError: `appearance` is not an [`Appearance`], or a number is not whole.
            ValueError: A component or an argument is missing, contradicts another or is out of range; the message
                says which.
        """
        required = ("unet", "scheduler", "source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter")
        absent = [name for name in required if getattr(self, name) is None]
        if absent or (self.vae is None and output_type != "latent"):
            raise ValueError(
                f"The pipeline has no {(absent or ['vae'])[0]}; load one. Only the vae may be missing, with "
                "`output_type='latent'`."
            )
        if not hasattr(self.scheduler, "init_noise_sigma") or not hasattr(self.scheduler, "scale_model_input"):
            raise ValueError(
                f"`scheduler` must be one for noise or velocity prediction such as `DDIMScheduler`, got "
                f"{type(self.scheduler).__name__}."
            )
        if (image is None) == (appearance is None):
            raise ValueError("Pass either `image` or `appearance` (from `encode_appearance`), and not both.")
        if appearance is not None and not isinstance(appearance, Appearance):
            raise TypeError(
                f"`appearance` must come from `encode_appearance`, got {type(appearance).__name__}. Pass a photo as "
                "`image`."
            )
        if pose is None:
            raise ValueError("`pose` is missing: pass OpenPose-18 keypoints, a pose map or `encode_pose(...)`.")
        check_numbers(self.vae_scale_factor, height, width, num_inference_steps, num_images_per_prompt)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if output_size is not None:
            sides = tuple(output_size) if isinstance(output_size, (tuple, list)) else ()
            if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
                raise ValueError(f"`output_size` must be (height, width) in whole pixels, got {output_size!r}.")
            if output_type == "latent":
                raise ValueError("`output_size` cannot be combined with `output_type='latent'`.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )
        callbacks = getattr(callback_on_step_end, "callbacks", [callback_on_step_end])
        if any(isinstance(callback, SDCFGCutoffCallback) for callback in callbacks):
            raise ValueError(
                "`SDCFGCutoffCallback` sets the guidance scale to 0, which here means no condition at all: set "
                "`pipe._guidance_scale = 1.0` in a callback of your own to turn guidance off, and "
                "`_pose_guidance_scale` and `_appearance_guidance_scale` to None if they were given."
            )
        check_ip_adapter_inputs(self.unet, self.image_encoder, ip_adapter_image, ip_adapter_image_embeds)

    def prepare_latents(
        self,
        batch_size: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw or check the starting noise, scaled as the scheduler wants it.

        Args:
            batch_size: B, number of images of the call.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            dtype: Of the result.
            device: Of the result.
            generator: One for the batch, or a list with one per image.
            latents: (B, C, h, w) standard-normal noise to start from instead of drawing some.

        Returns:
            (B, C, h, w) with h = height / `vae_scale_factor`.

        Raises:
            ValueError: A list of generators is not as long as the batch, or `latents` has another shape.
        """
        factor = self.vae_scale_factor
        shape = (batch_size, self.unet.config.in_channels, height // factor, width // factor)
        generator = check_generator(generator)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must be one generator or a list with one per image, got {len(generator)} for "
                f"{batch_size} images."
            )
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif not isinstance(latents, torch.Tensor):
            raise TypeError(f"`latents` must be a tensor, got {type(latents).__name__}.")
        elif tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        else:
            latents = latents.to(device=device, dtype=dtype)
        return latents * self.scheduler.init_noise_sigma

    def _prepare_timesteps(
        self, num_inference_steps: int, device: torch.device, timesteps: list[int] | None, sigmas: list[float] | None
    ) -> tuple[torch.Tensor, int]:
        """The scheduler's timesteps and how many steps they are; for pipelines that start later."""
        schedule: tuple[torch.Tensor, int] = retrieve_timesteps(
            self.scheduler, num_inference_steps, device, timesteps, sigmas
        )
        return schedule

    def _constrain_latents(self, latents: torch.Tensor, timesteps: torch.Tensor, step: int) -> torch.Tensor:
        """The latents after a step; for pipelines that hold a part of them."""
        return latents

    def _read_reference_pose(self, pose: Any, size: tuple[int, int]) -> Any:
        """The one pose of the person in a picture of (height, width), which has to be measured on that picture."""
        is_encoded = isinstance(pose, PoseFeatures)
        poses: Any = pose if is_encoded else split_poses(read_poses(pose, self.pose_estimator, shape=None))
        if len(poses) != 1:
            raise ValueError(f"`pose` must be the one pose of the person in the picture, got {len(poses)}.")
        if is_encoded:
            return pose
        (pose,) = poses
        if is_pose_map(pose):
            if not self.pose_processor.choose_crop(size).is_whole_image:
                raise ValueError(
                    "`pose` must be keypoints or `encode_pose(keypoints)` for a picture that has to be padded, as "
                    f"this one of {size[0]}x{size[1]} (height x width), got a pose map, which is not padded."
                )
            return pose
        keypoints = Keypoints.from_any(pose)
        is_whole = [self.pose_processor.choose_crop(side).is_whole_image for side in (keypoints.size, size)]
        if not all(is_whole) and not has_shape(keypoints.size, size):
            raise ValueError(
                f"`pose` was measured on a picture of {keypoints.size[0]}x{keypoints.size[1]} (height x width), but "
                f"the person's picture is {size[0]}x{size[1]}: measure it there (for an array, say so with "
                f"`Keypoints.from_any(pose, size={size})`), or bring the picture to the pose's shape; results made "
                "without `output_size` are squashed."
            )
        # One frame for both: a picture of the encoder's own size is not padded, others of its shape are.
        return keypoints if all(is_whole) else keypoints.rescale(size)

    def _encode_reference(self, reference: PIL.Image.Image, frame: CropWindow, size: tuple[int, int]) -> torch.Tensor:
        """The mode of the reference's latents, (1, C, h, w), squashed to the generated size as its pose is."""
        if self.vae is None:
            raise ValueError("The pipeline has no vae, which the person's picture has to pass; load one.")
        pixels = self.image_processor.preprocess(frame.crop(reference), height=size[0], width=size[1])
        pixels = pixels.to(self._execution_device, self.vae.dtype)
        encoded = self.vae.encode(pixels)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents * self.vae.config.scaling_factor).to(self.unet.dtype)

    def decode_latents(
        self,
        latents: torch.Tensor,
        output_size: tuple[int, int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Decode latents to images, and resize them as the field's evaluations do.

        Args:
            latents: (B, C, h, w), scaled as the U-Net sees them.
            output_size: (height, width) in pixels of a final bicubic resize with antialias, or `None` for none.
            generator: Randomness of decoders that have some (`ConsistencyDecoderVAE`).

        Returns:
            (B, 3, H, W), [0, 1].
        """
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        image = self.vae.decode(latents, return_dict=False, generator=generator)[0]
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_size is not None and tuple(image.shape[2:]) != tuple(output_size):
            # In float32, since the kernel is not there for all half precisions on all devices.
            resized = F.interpolate(
                image.float(), size=tuple(output_size), mode="bicubic", antialias=True, align_corners=False
            )
            image = resized.clamp(0, 1).to(image.dtype)
        return image

    @one_call_at_a_time
    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput | None = None,
        pose: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 2.0,
        pose_guidance_scale: float | None = None,
        appearance_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        appearance: Appearance | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        output_size: tuple[int, int] | None = None,
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature; only read
        micro_batch_size: int | None = None,
    ) -> CFLDPipelineOutput | tuple[list[PIL.Image.Image] | np.ndarray | torch.Tensor]:
        """Generate the source person in the target pose.

        Args:
            image: Source photo or photos: PIL, array (H, W, 3) or tensor (3, H, W) in [0, 1], a batch or a list of
                these. Squashed to the source encoder's size, as the published model does; padded to 256:176 before if
                they have another shape (see [`fit_photo`], which also crops to the person).
            pose: Target pose or poses: OpenPose-18 keypoints in any form of [`Keypoints.from_any`], pose maps
                (B, 21, H, W) in [0, 1], pictures of people in that pose (PIL or paths; with `pipe.pose_estimator`),
                paths of keypoint files, a list of these, or [`PoseFeatures`]. Keypoints without a frame of their own
                are read as pixels of a 256x176 (height x width) frame. One image and many poses broadcast, as do many
                images and one pose.
            height: Height of the generated image in pixels, a multiple of 8; default the U-Net's sample size, 512
                for the published model. At other sizes query biases and pose residuals are resized to the latents.
            width: Width of the generated image in pixels, likewise.
            num_inference_steps: Denoising steps.
            timesteps: Custom timesteps, for schedulers that take them.
            sigmas: Custom sigmas, for schedulers that take them.
            guidance_scale: Both weights of Eq. 7 where not given on their own; 1.0 turns guidance off.
            pose_guidance_scale: w_pose, >= 0: how strongly the pose is followed.
            appearance_guidance_scale: w_app, >= 0: how strongly the source is followed, and an IP-Adapter's image with
                it; 0 ignores both. Equal weights
                need two U-Net evaluations a step, a pose weight of 1 two, both 1 one, and others three.
            num_images_per_prompt: Images for each pair of source and pose.
            eta: DDIM's eta in [0, 1], ignored by other schedulers.
            generator: Source of randomness, one for the batch or a list with one per image.
            latents: (B, 4, height / 8, width / 8) standard-normal noise to start from.
            appearance: From [`~CFLDPipeline.encode_appearance`], in place of `image`.
            ip_adapter_image: Image of a loaded IP-Adapter.
            ip_adapter_image_embeds: Precomputed embeddings of a loaded IP-Adapter, negative and positive halves
                concatenated, or the positive ones alone without guidance.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            output_size: (height, width) in pixels of a final bicubic resize with antialias; the field's are
                (256, 176) and (512, 352).
            return_dict: Return a [`CFLDPipelineOutput`] instead of a tuple.
            cross_attention_kwargs: Arguments for the attention processors, e.g. `{"scale": 0.5}` for a LoRA.
            guidance_rescale: Phi of arXiv:2305.08891 Sec. 3.4, in [0, 1].
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step; tensors that it
                returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: Which tensors it gets, among `_callback_tensor_inputs`.
            micro_batch_size: Pairs of source and pose that are made at once, where memory does not hold all; a single
                source is still encoded once, and callbacks run in each batch. With a list of generators the images
                are those of one large batch, to rounding; one generator's numbers fall on other images. A callback's
                `_interrupt` ends the call after the batch in which it was set, with the images so far.

        Returns:
            The images, those of one pair next to each other, pairs in the order of the inputs.

        Raises:
            TypeError: An input is of none of the accepted types.
            ValueError: An input is out of range, contradicts another, or the numbers of images, poses, generators and
                latents do not fit together.
            RuntimeError: Another call uses the pipeline, its scheduler or its U-Net at the same moment.

        Examples:
            ```py
            >>> import torch
            >>> from diffusers.utils import load_image
            >>> from diffusers_cfld import CFLDPipeline, Keypoints

            >>> pipe = CFLDPipeline.from_pretrained("path/to/cfld", dtype=torch.float16).to("cuda")
            >>> pose = Keypoints.load("pose.json")
            >>> options = {"output_size": (512, 352), "generator": torch.manual_seed(0)}
            >>> image = pipe(image=load_image("person.jpg"), pose=pose, **options).images[0]
            ```
        """
        # 0. Defaults
        if micro_batch_size is not None:
            arguments = {name: value for name, value in locals().items() if name not in ("self", "micro_batch_size")}
            return call_in_micro_batches(self, micro_batch_size, **arguments)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or []
        height, width = self._choose_size(height, width)

        # 1. Check inputs
        self.check_inputs(
            image,
            pose,
            appearance,
            height,
            width,
            num_inference_steps,
            num_images_per_prompt,
            output_type,
            output_size,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            ip_adapter_image,
            ip_adapter_image_embeds,
        )
        for name, scale in (
            ("guidance_scale", guidance_scale),
            ("pose_guidance_scale", pose_guidance_scale),
            ("appearance_guidance_scale", appearance_guidance_scale),
        ):
            check_guidance_scale(name, guidance_scale if scale is None else scale)
        check_fractions(guidance_rescale=guidance_rescale, eta=eta)
        generator = check_generator(generator)
        self._guidance_scale = guidance_scale
        self._pose_guidance_scale = pose_guidance_scale
        self._appearance_guidance_scale = appearance_guidance_scale
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        weights = guidance_weights(self.pose_guidance_scale, self.appearance_guidance_scale)
        device = self._execution_device

        # 2. Encode source and pose, once for all steps
        if appearance is None:
            appearance = self.encode_appearance(image)
        check_appearance(appearance, self.unet, self.appearance_encoder)
        pose_features = self.encode_pose(pose)
        batch_size = broadcast_batch(appearance.batch_size, pose_features.batch_size) * num_images_per_prompt
        # Copies, once: a callback may change them in place, and the appearance may be used again.
        prompt_embeds = repeat_to(appearance.prompt_embeds.to(device, self.unet.dtype, copy=True), batch_size)
        null_prompt_embeds = appearance.null_prompt_embeds.to(device, self.unet.dtype, copy=True)

        # 3. Fit biases and residuals to the latents
        latent_size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        to_unet = partial(torch.Tensor.to, device=device, dtype=self.unet.dtype)
        fitted_biases = fit_query_biases(
            {name: to_unet(bias) for name, bias in appearance.query_biases.items()},
            latent_size,
            len(self.unet.config.up_block_types),
        )
        query_biases = {name: repeat_to(bias, batch_size) for name, bias in fitted_biases.items()}
        fitted_residuals = fit_pose_residuals(
            {name: to_unet(residual) for name, residual in pose_features.residuals.items()}, latent_size
        )
        pose_residuals = [repeat_to(residual, batch_size) for residual in fitted_residuals]
        num_pairs = batch_size // num_images_per_prompt
        image_embeds = self._prepare_image_embeds(ip_adapter_image, ip_adapter_image_embeds, num_pairs, batch_size)

        # 4. Prepare timesteps
        schedule, num_inference_steps = self._prepare_timesteps(num_inference_steps, device, timesteps, sigmas)
        self._num_timesteps = len(schedule)

        # 5. Prepare latents and what the scheduler's step takes
        latents = self.prepare_latents(batch_size, height, width, prompt_embeds.dtype, device, generator, latents)
        step_parameters = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {
            name: value for name, value in (("eta", eta), ("generator", generator)) if name in step_parameters
        }

        # 6. Denoise
        num_warmup_steps = len(schedule) - num_inference_steps * self.scheduler.order
        built_for: tuple[GuidanceBranch, ...] = ()
        branch_residuals: list[torch.Tensor] = []
        branch_biases: dict[str, torch.Tensor | None] = {}
        added_cond_kwargs: dict[str, Any] | None = None
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(schedule):
                if self.interrupt:
                    continue

                # A callback may change a scale; otherwise the large conditions are built once.
                weights = guidance_weights(self.pose_guidance_scale, self.appearance_guidance_scale)
                branches = tuple(weights)
                if built_for != branches:
                    built_for = branches
                    branch_residuals = [batch_residual(branches, residual) for residual in pose_residuals]
                    branch_biases = {name: batch_query_bias(branches, bias) for name, bias in query_biases.items()}
                    added_cond_kwargs = batch_image_embeds(branches, image_embeds)
                encoder_hidden_states = batch_prompts(branches, prompt_embeds, null_prompt_embeds, batch_size)

                latent_model_input = torch.cat([latents] * len(branches))
                latent_model_input = self.scheduler.scale_model_input(latent_model_input, t)
                # Only around the U-Net: a callback meets it, and may use it, as the user left it.
                with hybrid_granularity_attention(self.unet, branch_biases):
                    noise_pred = self.unet(
                        latent_model_input,
                        t,
                        encoder_hidden_states=encoder_hidden_states,
                        cross_attention_kwargs=self.cross_attention_kwargs,
                        # The U-Net pops from the list that it is given.
                        down_intrablock_additional_residuals=list(branch_residuals),
                        added_cond_kwargs=added_cond_kwargs,
                        return_dict=False,
                    )[0]
                branch_preds = noise_pred.chunk(len(branches))
                noise_pred = combine_guidance(branch_preds, tuple(weights.values()))
                if len(branches) > 1 and self.guidance_rescale > 0.0:
                    noise_pred = rescale_noise_cfg(
                        noise_pred, branch_preds[-1], guidance_rescale=self.guidance_rescale
                    )

                latents = self.scheduler.step(noise_pred, t, latents, **step_kwargs, return_dict=False)[0]
                latents = self._constrain_latents(latents, schedule, i)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    latents = callback_outputs.get("latents", latents)
                    prompt_embeds = callback_outputs.get("prompt_embeds", prompt_embeds)
                    null_prompt_embeds = callback_outputs.get("null_prompt_embeds", null_prompt_embeds)

                if i == len(schedule) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()

        # 7. Decode
        if output_type == "latent":
            images = latents
        else:
            images = self.decode_latents(latents, output_size, generator)
            images = self.image_processor.postprocess(
                images, output_type=output_type, do_denormalize=[False] * images.shape[0]
            )

        self.maybe_free_model_hooks()

        if not return_dict:
            return (images,)
        return CFLDPipelineOutput(images=images)

    def _prepare_image_embeds(
        self, image: Any, image_embeds: list[torch.Tensor] | None, num_pairs: int, batch_size: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per IP-Adapter the negative and the positive embeddings, (batch_size, ...) each; empty without any."""
        if image is None and image_embeds is None:
            return []
        # As in Stable Diffusion, embeddings given without guidance are the positive ones alone.
        guided = self.do_classifier_free_guidance
        if image_embeds is None:
            image_embeds = self.prepare_ip_adapter_image_embeds(image, None, self._execution_device, 1, guided)
        pairs = []
        for embed in image_embeds:
            count, rest = divmod(embed.shape[0], 2 if guided else 1)
            if rest or count not in (1, num_pairs, batch_size):
                counts = " or ".join(map(str, sorted({1, num_pairs, batch_size})))
                raise ValueError(
                    f"`ip_adapter_image_embeds` must hold {counts} embeddings per adapter, with guidance after as "
                    f"many negative ones, got {embed.shape[0]} in all with guidance {'on' if guided else 'off'}."
                )
            embed = embed.to(self._execution_device, self.unet.dtype)
            negative, positive = embed.chunk(2) if guided else (torch.zeros_like(embed), embed)
            pairs.append((repeat_to(negative, batch_size), repeat_to(positive, batch_size)))
        return pairs
