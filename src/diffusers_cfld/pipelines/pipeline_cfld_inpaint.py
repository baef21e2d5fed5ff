"""Appearance editing: give regions of a reference image the appearance of other sources, and keep the rest as it is.

Paper: arXiv:2402.18078, Sec. 4.6 and Fig. 6a, "style transfer", which needs no training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from typing_extensions import Unpack

from ..image_utils import load_image, to_rgb
from ..processors.cropping import CropWindow, has_shape
from ..processors.pose_map import PoseInput
from ..processors.source_image import ImageInput, split_images
from .checks import check_call, check_counts, check_finite, check_ip_adapter, warn_of_photos
from .control import encode_controls, match_controls
from .guidance import acts_at, select_rows
from .options import ControlImageInput, Generators, SamplingOptions, StepCallback
from .pipeline_output import Appearance, CFLDPipelineOutput, Images, PoseFeatures
from .pipeline_utils import CFLDPipelineBase

Mask: TypeAlias = "PIL.Image.Image | str | os.PathLike[str] | npt.NDArray[Any] | torch.Tensor"
MaskInput: TypeAlias = "Mask | Sequence[Mask] | Sequence[Sequence[Mask]]"

# An 8-bit mask that is black apart from rounding selects nothing.
_SMALLEST_MASK = 1 / 255


class CFLDInpaintPipeline(CFLDPipelineBase):
    """Give regions of a reference image the appearance of other people's images, in the reference's own pose.

    At every step, each region follows the appearance of its source and the reference's pose; outside the regions, the
    reference's own noised latents are put back. At the end the masks are used to paste the result into the reference,
    so that every pixel outside them is the reference's. Components and saved folders are those of [`CFLDPipeline`];
    `CFLDInpaintPipeline.from_pipe(pipe)` shares the components of `pipe`.

    Args:
        vae: See [`CFLDPipeline`].
        unet: See [`CFLDPipeline`].
        scheduler: See [`CFLDPipeline`]; it must have `add_noise`.
        source_encoder: See [`CFLDPipeline`].
        prompt_decoder: See [`CFLDPipeline`].
        appearance_encoder: See [`CFLDPipeline`].
        pose_adapter: See [`CFLDPipeline`].
        feature_extractor: See [`CFLDPipeline`].
        image_encoder: See [`CFLDPipeline`].
        controlnet: See [`CFLDPipeline`].
        adapter: See [`CFLDPipeline`].
        frame_height: See [`CFLDPipeline`].
        frame_width: See [`CFLDPipeline`].

    Raises:
        ValueError: Components do not fit together.
    """

    def check_inputs(
        self,
        image: ImageInput | None,
        mask_image: MaskInput | None,
        source_image: Any,
        appearance: Appearance | None,
        pose: PoseInput | PoseFeatures | None,
        strength: float,
        feather: float,
    ) -> None:
        """Check the arguments that only this pipeline has.

        Args:
            image: As in `__call__`.
            mask_image: As in `__call__`.
            source_image: As in `__call__`.
            appearance: As in `__call__`.
            pose: As in `__call__`.
            strength: As in `__call__`.
            feather: As in `__call__`.

        Raises:
            ValueError: An argument is missing, out of range or contradicts another.
        """
        if image is None or mask_image is None or (isinstance(mask_image, list) and not mask_image):
            raise ValueError("Pass the reference as `image` and the region to change as `mask_image`.")
        if (source_image is None) == (appearance is None):
            raise ValueError("Pass exactly one of `source_image` and `appearance` (from `encode_appearance`).")
        if pose is None and self.pose_estimator is None:
            raise ValueError("`pose` is missing: pass the reference's own pose, or set `pipe.pose_estimator`.")
        if not 0 < strength <= 1:
            raise ValueError(f"`strength` must be above 0 and at most 1, got {strength}.")
        if not 0 <= feather < float("inf"):
            raise ValueError(f"`feather` must be a number of pixels >= 0, got {feather}.")
        if not hasattr(self.scheduler, "add_noise"):
            raise ValueError(
                "`scheduler` must have `add_noise`, to add noise to the reference, but "
                f"{type(self.scheduler).__name__} has none: use another one, such as `DDIMScheduler`."
            )

    @overload
    def __call__(
        self,
        image: ImageInput | None = None,
        mask_image: MaskInput | None = None,
        source_image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        strength: float = 1.0,
        feather: float = 4.0,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **kwargs: Unpack[SamplingOptions],
    ) -> CFLDPipelineOutput[list[PIL.Image.Image]]: ...

    @overload
    def __call__(
        self,
        image: ImageInput | None = None,
        mask_image: MaskInput | None = None,
        source_image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        strength: float = 1.0,
        feather: float = 4.0,
        *,
        output_type: str,
        return_dict: Literal[True] = True,
        **kwargs: Unpack[SamplingOptions],
    ) -> CFLDPipelineOutput: ...

    @overload
    def __call__(
        self,
        image: ImageInput | None = None,
        mask_image: MaskInput | None = None,
        source_image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        strength: float = 1.0,
        feather: float = 4.0,
        *,
        output_type: str = "pil",
        return_dict: Literal[False],
        **kwargs: Unpack[SamplingOptions],
    ) -> tuple[Images]: ...

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | None = None,
        mask_image: MaskInput | None = None,
        source_image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        strength: float = 1.0,
        feather: float = 4.0,
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
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        appearance: Appearance | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature; only read
        micro_batch_size: int | None = None,
        control_image: ControlImageInput | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        adapter_image: ControlImageInput | None = None,
        adapter_conditioning_scale: float | list[float] = 1.0,
        guidance_interval: tuple[float, float] | None = None,
    ) -> CFLDPipelineOutput | tuple[Images]:
        """Edit reference images.

        Args:
            image: The reference or references: PIL images of any size, paths or URLs, arrays (H, W, 3) or tensors
                (3, H, W) in [0, 1], or a list of these.
            mask_image: Where a reference should change: a mask with the reference's aspect ratio that is white (or 1)
                there; grey values blend. A PIL image, a path or URL, an array (H, W) or a tensor (H, W) with floats in
                [0, 1], booleans or 8 bits (0 to 255, or labels 0 and 1). For several regions of one reference, a list
                of masks; for several references, a list with a mask or a list of masks for each.
            source_image: The image whose appearance the region takes, as `image` in [`CFLDPipeline`]; one for each
                mask, in lists like those of `mask_image`; or an [`Appearance`].
            pose: The pose of each reference, measured on it, in any form that [`CFLDPipeline`] takes; may be left out
                if `pipe.pose_estimator` is set, which then finds the pose in the reference.
            strength: How much of the denoising is done, in (0, 1]. At 1 the region is made from scratch; below 1 it
                starts from the reference's own pixels with that much noise.
            feather: Width in pixels of the reference of the blend at a region's edge, inwards from the mask's edge.
            height: Height of the generated image in pixels, a multiple of 8; the U-Net's sample size by default. The
                result has the reference's size in any case.
            width: Width of the generated image in pixels, likewise.
            num_inference_steps: Denoising steps at strength 1.
            timesteps: Custom timesteps, for schedulers that take them.
            sigmas: Custom sigmas, for schedulers that take them.
            guidance_scale: As in [`CFLDPipeline`].
            pose_guidance_scale: As in [`CFLDPipeline`].
            appearance_guidance_scale: As in [`CFLDPipeline`].
            num_images_per_prompt: Results for each reference.
            eta: DDIM's eta in [0, 1], ignored by other schedulers.
            generator: Source of randomness, one for all or a list with one per result.
            latents: (B, 4, height / 8, width / 8) standard-normal noise to start from, one sample per result.
            appearance: From [`~CFLDPipeline.encode_appearance`], instead of `source_image`; one source per mask.
            ip_adapter_image: As in [`CFLDPipeline`].
            ip_adapter_image_embeds: As in [`CFLDPipeline`].
            output_type: `"pil"`, `"np"` or `"pt"`, with images of the reference's size, or `"latent"`. For `"np"` and
                `"pt"` all references must have one size.
            return_dict: Return a [`CFLDPipelineOutput`] instead of a tuple.
            cross_attention_kwargs: Arguments for the attention processors.
            guidance_rescale: As in [`CFLDPipeline`].
            callback_on_step_end: As in [`CFLDPipeline`]; the tensors have one sample for each region of each result.
            callback_on_step_end_tensor_inputs: As in [`CFLDPipeline`].
            micro_batch_size: As in [`CFLDPipeline`].
            control_image: As in [`CFLDPipeline`], but with the reference's aspect ratio and one for each reference.
            controlnet_conditioning_scale: As in [`CFLDPipeline`].
            control_guidance_start: As in [`CFLDPipeline`].
            control_guidance_end: As in [`CFLDPipeline`].
            adapter_image: As `control_image`.
            adapter_conditioning_scale: As in [`CFLDPipeline`].
            guidance_interval: As in [`CFLDPipeline`].

        Returns:
            The results; those of one reference are next to each other. Where all masks are 0, their pixels are the
            reference's.

        Raises:
            TypeError: An input has none of the accepted types.
            OSError: A file or URL cannot be read.
            ValueError: A mask is empty or does not have its reference's aspect ratio; the numbers of references,
                masks, sources and poses do not fit together; an argument is missing or out of range; or the result is
                not finite and would be a black image.
            RuntimeError: Another thread is using the U-Net.

        Examples:
            ```py
            >>> from diffusers_cfld import CFLDInpaintPipeline

            >>> pipe = CFLDInpaintPipeline.from_pretrained("path/to/cfld")
            >>> image = pipe(image=reference, mask_image=shirt, source_image=other_person, pose=pose).images[0]
            ```
        """
        # 0. Defaults
        if isinstance(source_image, Appearance) and appearance is None:
            source_image, appearance = None, source_image
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or []
        height = self.target_size[0] if height is None else height
        width = self.target_size[1] if width is None else width
        self._guidance_scale = guidance_scale
        self._pose_guidance_scale = pose_guidance_scale
        self._appearance_guidance_scale = appearance_guidance_scale
        self._guidance_interval = guidance_interval
        self._guidance_rescale = guidance_rescale
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False

        # 1. Check inputs
        self.check_inputs(image, mask_image, source_image, appearance, pose, strength, feather)
        check_counts(
            num_inference_steps=num_inference_steps,
            num_images_per_prompt=num_images_per_prompt,
            micro_batch_size=micro_batch_size,
        )
        check_call(self, appearance, height, width, output_type, callback_on_step_end_tensor_inputs)
        check_ip_adapter(self, ip_adapter_image, ip_adapter_image_embeds)
        scales, starts, ends = controlnet_conditioning_scale, control_guidance_start, control_guidance_end
        controlnets = match_controls("controlnet", self.controlnet, control_image, scales, starts, ends)
        adapters = match_controls("adapter", self.adapter, adapter_image, adapter_conditioning_scale)
        device, dtype = self._execution_device, self.unet.dtype

        # 2. Read references, masks and poses
        images = [self.source_image_processor.to_rgb(item) for item in split_images(image)]  # type: ignore[arg-type]  # given
        warn_of_photos(self, images)
        masks = _for_each(mask_image, len(images))
        references = [
            _Reference(one, _read_masks(mask, one.size), self.pose_processor.choose_crop((one.height, one.width)))
            for one, mask in zip(images, masks, strict=True)
        ]
        sizes = [reference.crop.image_size for reference in references]
        if output_type in ("np", "pt") and len(set(sizes)) > 1:
            raise ValueError(f"`output_type` must be 'pil' or 'latent' for references of several sizes, got {sizes}.")
        poses: Any = pose
        if not isinstance(pose, PoseFeatures):
            found = images if pose is None else _for_each(pose, len(images))
            poses = [self.read_reference_pose(item, size) for item, size in zip(found, sizes, strict=True)]

        # 3. Encode sources and poses, once for all steps. Every region of every result is a sample: the regions are
        # in order, and the results of a region are next to each other.
        num_regions = [len(reference.masks) for reference in references]
        region_owners = [number for number, count in enumerate(num_regions) for _ in range(count)]  # their references
        nested: list[int] = []  # sources of each reference, if they are in lists as the masks are
        if appearance is None:
            items: list[Any] = list(source_image) if isinstance(source_image, (list, tuple)) else [source_image]
            flat: list[Any] = [one for item in items for one in (item if isinstance(item, (list, tuple)) else [item])]
            nested = [len(item) for item in items if isinstance(item, (list, tuple))]
            appearance = self.encode_appearance(split_images(flat), micro_batch_size)
        if len(appearance) != len(region_owners) or (len(nested) == len(references) > 1 and nested != num_regions):
            raise ValueError(
                f"There must be one source for each mask, got {nested or len(appearance)} sources and {num_regions} "
                "masks."
            )
        pose_features = self.encode_pose(poses, micro_batch_size)
        if len(pose_features) != len(references):
            raise ValueError(
                f"There must be one pose for each reference, got {len(pose_features)} for {len(references)}."
            )
        pose_features = pose_features[region_owners]
        conditions = self.prepare_conditions(
            appearance, pose_features, height, width, num_images_per_prompt, ip_adapter_image, ip_adapter_image_embeds
        )
        for control in (*controlnets, *adapters):
            fitted = self._fit_control_images(control.image, references)
            control.image = [fitted[owner] for owner in region_owners]
        size = (height, width)
        encode_controls(self, conditions, controlnets, adapters, size, num_images_per_prompt, micro_batch_size)
        batch_size = conditions.batch_size
        prompt_embeds = select_rows(conditions.prompt_embeds, slice(None), batch_size).clone()
        null_prompt_embeds = conditions.null_prompt_embeds.clone()

        # 4. Prepare timesteps; a strength below 1 leaves out the first ones
        timesteps, num_inference_steps = retrieve_timesteps(
            self.scheduler, num_inference_steps, device, timesteps, sigmas
        )
        timesteps, num_inference_steps = self.get_timesteps(timesteps, num_inference_steps, strength)
        self._num_timesteps = len(timesteps)

        # 5. Prepare the references' latents, and noise that is the same for all regions of a result
        num_results, repeats = len(references) * num_images_per_prompt, range(num_images_per_prompt)
        result_owners = [number // num_images_per_prompt for number in range(num_results)]
        sample_results = [owner * num_images_per_prompt + number for owner in region_owners for number in repeats]
        has_regions = len(sample_results) > num_results
        latent_size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        region_masks = torch.cat([reference.shrink_masks(latent_size) for reference in references])
        region_masks = region_masks.to(device, dtype).repeat_interleave(num_images_per_prompt, dim=0)
        reference_latents = torch.cat([self.encode_reference_image(one, height, width) for one in images])
        reference_latents = reference_latents[result_owners]
        if has_regions and not isinstance(generator, list):
            generator = _seed_generators(generator, num_results)
        latents = self.prepare_latents(num_results, height, width, dtype, device, generator, latents)
        noise = latents / self.scheduler.init_noise_sigma
        if strength < 1:
            first = timesteps[:1].repeat(num_results)  # type: ignore[union-attr]  # a tensor by now
            latents = self.scheduler.add_noise(reference_latents, noise, first)
        owners = torch.tensor(sample_results, device=device)
        latents = latents[owners]
        if has_regions and isinstance(generator, list):
            generator = [_copy_generator(generator[result]) for result in sample_results]
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 6. Denoise
        num_warmup_steps = len(timesteps) - num_inference_steps * self.scheduler.order
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue

                conditions.replace_prompts(prompt_embeds, null_prompt_embeds)
                conditions.control_scales = [net.scale_at(i, len(timesteps)) for net in controlnets]
                conditions.is_guided = acts_at(i, len(timesteps), *(guidance_interval or (0.0, 1.0)))
                latent_model_input = self.scheduler.scale_model_input(latents, t)
                noise_pred = self.predict_noise(latent_model_input, t, conditions, micro_batch_size)
                latents = self.scheduler.step(noise_pred, t, latents, **extra_step_kwargs, return_dict=False)[0]

                # Sec. 4.6: keep each region's own latents inside its mask, and put the reference's latents with this
                # step's noise elsewhere. Within a step of several evaluations, only the scheduler knows the noise.
                is_last = i == len(timesteps) - 1
                if is_last or (i + 1) % self.scheduler.order == 0:
                    outside = reference_latents
                    if not is_last:
                        following = timesteps[i + 1 : i + 2].repeat(len(noise))  # type: ignore[union-attr]
                        outside = self.scheduler.add_noise(reference_latents, noise, following)
                    latents = _blend(latents, region_masks, owners, outside)

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    latents = callback_outputs.get("latents", latents)
                    prompt_embeds = callback_outputs.get("prompt_embeds", prompt_embeds)
                    null_prompt_embeds = callback_outputs.get("null_prompt_embeds", null_prompt_embeds)

                if is_last or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()

        # 7. Decode, and paste the results into their references
        first_samples = [sample_results.index(number) for number in range(num_results)]
        output: Any = latents[first_samples]
        check_finite(self, output)
        if output_type != "latent":
            if isinstance(generator, list):
                generator = [generator[number] for number in first_samples]
            decoded = self.decode_latents(output, None, generator, micro_batch_size)
            check_finite(self, decoded)
            made = self.image_processor.postprocess(decoded, output_type="pil", do_denormalize=[False] * num_results)
            output = [references[owner].paste(one, feather) for owner, one in zip(result_owners, made, strict=True)]
            if output_type != "pil":
                output = self.image_processor.pil_to_numpy(output)
            if output_type == "pt":
                output = self.image_processor.numpy_to_pt(output)

        # 8. Free the models' hooks
        self.maybe_free_model_hooks()

        return CFLDPipelineOutput(images=output) if return_dict else (output,)

    def _fit_control_images(self, images: Any, references: list[_Reference]) -> list[PIL.Image.Image]:
        """Crop a model's control images as their references are cropped."""
        items = [self.source_image_processor.to_rgb(item) for item in split_images(images)]
        shapes = [(item.height, item.width) for item in items]
        sizes = [reference.crop.image_size for reference in references]
        if len(items) != len(references) or not all(map(has_shape, shapes, sizes)):
            raise ValueError(
                "Control images must be one for each reference, with the reference's aspect ratio, got "
                f"{shapes} (height, width) for references of {sizes}."
            )
        return [one.crop.crop(item.resize(one.image.size)) for one, item in zip(references, items, strict=True)]

    def get_timesteps(self, timesteps: Any, num_inference_steps: int, strength: float) -> tuple[Any, int]:
        """Leave out the first timesteps, depending on `strength`.

        Args:
            timesteps: All timesteps of the scheduler, a tensor.
            num_inference_steps: The number of steps they make.
            strength: In (0, 1].

        Returns:
            The remaining timesteps, and the number of steps they make.
        """
        order = self.scheduler.order
        # There is one custom timestep per evaluation, and a step of a higher-order scheduler has several evaluations.
        num_inference_steps = min(num_inference_steps, -(-len(timesteps) // order))
        kept = max(1, int(num_inference_steps * strength))
        first = (num_inference_steps - kept) * order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return timesteps[first:], kept


@dataclass
class _Reference:
    """A reference image and the regions of it that change.

    Args:
        image: RGB.
        masks: (R, H, W), [0, 1], one for each region; their sum is at most 1 everywhere.
        crop: The part of the image that the model sees.
    """

    image: PIL.Image.Image
    masks: npt.NDArray[np.float32]
    crop: CropWindow

    def shrink_masks(self, latent_size: tuple[int, int]) -> torch.Tensor:
        """Shrink the masks to the latents' size, (R, 1, h, w): each cell gets the largest value of its pixels."""
        crop, (height, width) = self.crop, self.crop.image_size
        window = np.zeros((len(self.masks), crop.height, crop.width), dtype=np.float32)
        window[:, -crop.top : height - crop.top, -crop.left : width - crop.left] = self.masks
        cells = F.adaptive_max_pool2d(torch.from_numpy(window)[:, None], latent_size)
        return cells / cells.sum(dim=0).clamp(min=1)

    def paste(self, result: PIL.Image.Image, feather: float) -> PIL.Image.Image:
        """Paste a result into the regions, with a ramp inwards from their common edge."""
        mask = _feather(self.masks.sum(axis=0).clip(max=1), feather)
        return self.crop.paste(result, self.image, PIL.Image.fromarray(np.rint(255 * mask).astype(np.uint8)))


def _blend(latents: torch.Tensor, masks: torch.Tensor, owners: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Blend samples by their masks (S, 1, h, w), each into its owner's result, with `outside` where no mask is."""
    inside = torch.zeros_like(outside).index_add(0, owners, (masks * latents).to(outside))
    covered = torch.zeros_like(outside[:, :1]).index_add(0, owners, masks.to(outside))
    return (inside + (1 - covered) * outside).to(latents)[owners]


def _for_each(items: Any, count: int) -> list[Any]:
    """One entry for each of `count` references; if there is only one, everything belongs to it."""
    if count == 1:
        return [items]
    if not isinstance(items, (list, tuple)) or len(items) != count:
        got = len(items) if isinstance(items, (list, tuple)) else type(items).__name__
        raise ValueError(f"With {count} references, masks and poses must be lists of {count} entries, got {got}.")
    return list(items)


def _read_masks(mask_image: Any, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Read the masks of a reference of `size` (width, height) as (R, H, W) in [0, 1], with a sum of at most 1."""
    if isinstance(mask_image, (list, tuple)) and len(mask_image) == 1 and isinstance(mask_image[0], (list, tuple)):
        (mask_image,) = mask_image  # a batch of one reference
    items = mask_image if isinstance(mask_image, (list, tuple)) else [mask_image]
    masks = np.stack([_read_mask(item, size) for item in items])
    # Overlapping regions share their pixels.
    return (masks / np.maximum(masks.sum(axis=0), 1)).astype(np.float32)


def _read_mask(mask: Any, size: tuple[int, int]) -> Any:
    if isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.shape[2:] in ((3,), (4,)):
        mask = PIL.Image.fromarray(mask)
    values: Any = mask
    if isinstance(mask, (PIL.Image.Image, str, os.PathLike)):
        values = np.asarray(to_rgb(load_image(mask), background=(0, 0, 0)).convert("L"))
    elif isinstance(mask, torch.Tensor):
        values = (mask.float() if mask.is_floating_point() else mask).numpy(force=True)
    elif not isinstance(mask, np.ndarray):
        raise TypeError(f"A mask must be a PIL image, path, URL, array or tensor, got {type(mask).__name__}.")
    values = values.squeeze()
    # 8-bit values of only 0 and 1 are labels.
    is_8_bit = values.dtype == np.uint8 and values.max(initial=0) > 1
    values = (values / np.float32(255 if is_8_bit else 1)).astype(np.float32)
    width, height = size
    if values.ndim != 2 or 0 in values.shape or not has_shape(values.shape, (height, width)):
        raise ValueError(
            f"A mask must have one channel and its reference's aspect ratio, that of {height}x{width} pixels, got "
            f"shape {values.shape}."
        )
    if not (values.min() >= 0 and _SMALLEST_MASK <= values.max() <= 1):
        raise ValueError(
            "A mask must hold values in [0, 1] and be white where the reference should change, got "
            f"{values.min():.4g} to {values.max():.4g}."
        )
    return values if values.shape == (height, width) else cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)


def _feather(mask: npt.NDArray[np.float32], feather: float) -> npt.NDArray[np.float32]:
    """Add a ramp inwards from the mask's edge; zero stays zero, and the edge of the image does not count."""
    if feather == 0 or mask.min() > 0:
        return mask
    inside = cv2.copyMakeBorder((mask > 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    ramp: npt.NDArray[np.float32] = (mask * np.minimum(distance / (feather + 1), 1)).astype(np.float32)
    return ramp


def _seed_generators(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    """Make generators, one for each result."""
    device = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _copy_generator(generator: torch.Generator) -> torch.Generator:
    """Make a generator that goes on with the same numbers, so that regions get the same noise at every step."""
    return torch.Generator(generator.device).set_state(generator.get_state())
