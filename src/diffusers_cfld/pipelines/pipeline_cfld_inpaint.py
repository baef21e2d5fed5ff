"""Appearance editing: a region of a reference picture takes another source's appearance, the rest stays as it is.

Paper: arXiv:2402.18078, Sec. 4.6 and Fig. 6a, "style transfer", which needs no training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

from ..image_utils import to_rgb
from ..processors.cropping import CropWindow
from ..processors.source_image import split_images
from .calling import one_call_at_a_time, plain_call
from .input_checks import check_generator, check_numbers
from .pipeline_cfld import CFLDPipeline
from .pipeline_output import Appearance, CFLDPipelineOutput

# An 8-bit mask that is black but for rounding selects nothing.
_SMALLEST_MASK = 1 / 255


@dataclass
class _Edit:
    """What the denoising of a call holds on to."""

    reference_latents: torch.Tensor  # (1, C, h, w)
    masks: torch.Tensor  # (R, 1, h, w), of the regions; their sum is at most 1
    strength: float
    first_step: int = 0
    noise: torch.Tensor | None = None  # (N, C, h, w), of unit variance


class CFLDInpaintPipeline(CFLDPipeline):
    """Give regions of a reference picture the appearance of other people's photos, in the reference's own pose.

    At every step the region follows its source's appearance and the reference's pose; outside of the regions the
    reference's own noised latents are put back. At last the result is laid over the reference with the masks, so that
    every pixel outside of them is the reference's. Components and saved folders are those of [`CFLDPipeline`]:
    `CFLDInpaintPipeline.from_pipe(pipe)` shares them.

    Args:
        vae: As of [`CFLDPipeline`].
        unet: As of [`CFLDPipeline`].
        scheduler: As of [`CFLDPipeline`]; one with `add_noise`.
        source_encoder: As of [`CFLDPipeline`].
        prompt_decoder: As of [`CFLDPipeline`].
        appearance_encoder: As of [`CFLDPipeline`].
        pose_adapter: As of [`CFLDPipeline`].
        feature_extractor: As of [`CFLDPipeline`].
        image_encoder: As of [`CFLDPipeline`].
        frame_height: As of [`CFLDPipeline`].
        frame_width: As of [`CFLDPipeline`].

    Raises:
        ValueError: Components do not fit together.
    """

    _edit: _Edit | None = None

    @one_call_at_a_time
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor | None = None,
        mask_image: Any = None,
        source_image: PipelineImageInput | Appearance | None = None,
        pose: Any = None,
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
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        appearance: Appearance | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature; only read
    ) -> CFLDPipelineOutput | tuple[list[PIL.Image.Image] | np.ndarray | torch.Tensor]:
        """Edit one reference picture.

        Args:
            image: The reference: a PIL image of any size, an array (H, W, 3) or a tensor (3, H, W) in [0, 1].
            mask_image: Where it is to change: white, or 1, in a picture of the reference's shape, greys in between are
                soft; a PIL image, an array (H, W) or a tensor (H, W), floats in [0, 1], booleans, or 8 bits (of 0 to
                255, or labels of 0 and 1). For several regions a list of masks.
            source_image: As `image` of [`CFLDPipeline`]: the photo whose appearance the region takes, for several
                regions a list with one each; or an [`Appearance`].
            pose: The reference's own pose, measured on it, in any form of [`CFLDPipeline`]; with
                `pipe.pose_estimator` it may be left out, and is then found in the reference.
            strength: In (0, 1]: how much of the denoising is done. 1 makes the region anew, less begins from the
                reference's own pixels there with as much noise.
            feather: Pixels of the reference over which a region's edge blends, inwards from the mask's edge.
            height: Height of the generated picture in pixels, a multiple of 8; default the U-Net's sample size. The
                result has the reference's size in any case.
            width: Width of it, likewise.
            num_inference_steps: Denoising steps for strength 1.
            timesteps: Custom timesteps, for schedulers that take them.
            sigmas: Custom sigmas, for schedulers that take them.
            guidance_scale: As in [`CFLDPipeline`].
            pose_guidance_scale: As in [`CFLDPipeline`].
            appearance_guidance_scale: As in [`CFLDPipeline`].
            num_images_per_prompt: Results.
            eta: DDIM's eta in [0, 1], ignored by other schedulers.
            generator: Source of randomness, one for all or a list with one per result.
            latents: (num_images_per_prompt, 4, height / 8, width / 8) standard-normal noise to start from.
            appearance: From [`~CFLDPipeline.encode_appearance`], in place of `source_image`; one source per region.
            ip_adapter_image: As in [`CFLDPipeline`].
            ip_adapter_image_embeds: As in [`CFLDPipeline`].
            output_type: `"pil"`, `"np"`, `"pt"`, each of the reference's size, or `"latent"`.
            return_dict: Return a [`CFLDPipelineOutput`] instead of a tuple.
            cross_attention_kwargs: Arguments for the attention processors.
            guidance_rescale: As in [`CFLDPipeline`].
            callback_on_step_end: As in [`CFLDPipeline`]; batches hold the regions one after another.
            callback_on_step_end_tensor_inputs: As in [`CFLDPipeline`].

        Returns:
            The results. Where all masks are 0 their pixels are the reference's.

        Raises:
            TypeError: An input is of none of the accepted types.
            ValueError: A mask is empty or of another shape than the reference, there are not as many sources as masks,
                or an argument is missing or out of range.
            RuntimeError: Another call uses the pipeline, its scheduler or its U-Net at the same moment.

        Examples:
            ```py
            >>> from diffusers_cfld import CFLDInpaintPipeline

            >>> pipe = CFLDInpaintPipeline.from_pretrained("path/to/cfld")
            >>> image = pipe(image=reference, mask_image=shirt, source_image=other_person, pose=pose).images[0]
            ```
        """
        if image is None or mask_image is None:
            raise ValueError("Pass the reference as `image` and the region to change as `mask_image`.")
        if isinstance(source_image, Appearance) and appearance is None:
            source_image, appearance = None, source_image
        if (source_image is None) == (appearance is None):
            raise ValueError("Pass either `source_image` or `appearance` (from `encode_appearance`), and not both.")
        if not isinstance(strength, Real) or not 0 < strength <= 1:
            raise ValueError(f"`strength` must be a number above 0 and at most 1, got {strength!r}.")
        if not isinstance(feather, Real) or not 0 <= feather < float("inf"):
            raise ValueError(f"`feather` must be a number of pixels >= 0, got {feather!r}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if self.vae is None:
            raise ValueError("The pipeline has no vae, which the reference has to pass; load one.")
        if not hasattr(self.scheduler, "add_noise"):
            raise ValueError(
                f"`scheduler` must have `add_noise`, which {type(self.scheduler).__name__} has not: the reference has "
                "to be noised."
            )
        size = self._choose_size(height, width)
        check_numbers(self.vae_scale_factor, *size, num_inference_steps, num_images_per_prompt)
        generator = check_generator(generator)
        reference = self.source_image_processor.to_rgb(_single_picture(image))
        masks = _read_masks(mask_image, (reference.height, reference.width))
        if pose is None and self.pose_estimator is None:
            raise ValueError("`pose` is missing: pass the reference's own pose, or set `pipe.pose_estimator`.")
        pose = self._read_reference_pose(reference if pose is None else pose, (reference.height, reference.width))
        sources = appearance if appearance is not None else self.encode_appearance(split_images(source_image))
        if len(sources) != len(masks):
            raise ValueError(
                f"There must be as many sources as masks, one for each region, got {len(sources)} and {len(masks)}."
            )
        frame = self.pose_processor.choose_crop((reference.height, reference.width))
        self._edit = _Edit(
            reference_latents=self._encode_reference(reference, frame, size),
            masks=_shrink_masks(masks, frame, (size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor)),
            strength=strength,
        )
        try:
            output = plain_call(
                self,
                is_inner=True,
                pose=pose,
                height=size[0],
                width=size[1],
                num_inference_steps=num_inference_steps,
                timesteps=timesteps,
                sigmas=sigmas,
                guidance_scale=guidance_scale,
                pose_guidance_scale=pose_guidance_scale,
                appearance_guidance_scale=appearance_guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                eta=eta,
                generator=_share_noise(generator, len(masks), num_images_per_prompt),
                latents=latents,
                appearance=sources,
                ip_adapter_image=ip_adapter_image,
                ip_adapter_image_embeds=ip_adapter_image_embeds,
                output_type="latent",
                return_dict=False,
                cross_attention_kwargs=cross_attention_kwargs,
                guidance_rescale=guidance_rescale,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
        finally:
            self._edit = None
        images: Any = output[0][:num_images_per_prompt]  # all regions' copies are equal by now
        if output_type != "latent":
            images = self._paste(
                images,
                reference,
                frame,
                _feather(masks.sum(axis=0).clip(max=1), feather),
                output_type,
                generator,
            )
        self.maybe_free_model_hooks()
        return CFLDPipelineOutput(images=images) if return_dict else (images,)

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
        """Draw the starting noise, the same for all regions, over the reference where `strength` is below 1.

        Args:
            batch_size: Images of the call, times regions.
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            dtype: Of the result.
            device: Of the result.
            generator: One for the batch, or a list with one per sample.
            latents: Standard-normal noise to start from instead of drawing some, (images, C, h, w) for all regions.

        Returns:
            (B, C, h, w) with h = height / `vae_scale_factor`.

        Raises:
            ValueError: As [`CFLDPipeline.prepare_latents`].
        """
        if self._edit is None:
            return super().prepare_latents(batch_size, height, width, dtype, device, generator, latents)
        num_images = batch_size // len(self._edit.masks)
        if latents is None:
            noise = super().prepare_latents(batch_size, height, width, dtype, device, generator)
        else:
            noise = super().prepare_latents(num_images, height, width, dtype, device, None, latents)
        self._edit.noise = noise[:num_images] / self.scheduler.init_noise_sigma
        noise = self._edit.noise.repeat(len(self._edit.masks), 1, 1, 1)
        if self._edit.strength == 1:
            return noise * self.scheduler.init_noise_sigma
        first = self.scheduler.timesteps[self._edit.first_step].repeat(batch_size)
        return self.scheduler.add_noise(self._edit.reference_latents.expand_as(noise), noise, first)

    def _prepare_timesteps(
        self, num_inference_steps: int, device: torch.device, timesteps: list[int] | None, sigmas: list[float] | None
    ) -> tuple[torch.Tensor, int]:
        all_timesteps, num_inference_steps = super()._prepare_timesteps(num_inference_steps, device, timesteps, sigmas)
        first_step = 0
        if timesteps is not None or sigmas is not None:
            # There are as many as evaluations, of which a step of a higher order has several.
            num_inference_steps = -(-num_inference_steps // self.scheduler.order)
        if self._edit is not None and self._edit.strength < 1:
            kept = max(1, min(int(num_inference_steps * self._edit.strength), num_inference_steps))
            first_step = self._edit.first_step = (num_inference_steps - kept) * self.scheduler.order
            if hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(first_step)
            num_inference_steps = kept
        return all_timesteps[first_step:], num_inference_steps

    def _constrain_latents(self, latents: torch.Tensor, timesteps: torch.Tensor, step: int) -> torch.Tensor:
        """Sec. 4.6: the regions' own latents in their masks, the reference's with this step's noise elsewhere."""
        edit = self._edit
        if edit is None or edit.noise is None:
            return latents
        is_last = step + 1 == len(timesteps)
        if not is_last and (step + 1) % self.scheduler.order:
            return latents  # between the evaluations of one step, at a noise level of the scheduler's own
        reference = edit.reference_latents.expand_as(edit.noise)
        if not is_last:
            next_timestep = timesteps[step + 1 : step + 2].repeat(len(edit.noise))
            reference = self.scheduler.add_noise(reference, edit.noise, next_timestep)
        masks = edit.masks.to(latents)[:, None]  # (R, 1, 1, h, w)
        regions = latents.reshape(len(masks), -1, *latents.shape[1:])  # (R, N, C, h, w)
        blended = (masks * regions).sum(dim=0) + (1 - masks.sum(dim=0)) * reference
        return blended.to(latents.dtype).repeat(len(masks), 1, 1, 1)

    def _paste(
        self,
        latents: torch.Tensor,
        reference: PIL.Image.Image,
        frame: CropWindow,
        mask: npt.NDArray[np.float32],
        output_type: str,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Any:
        """Lay decoded pictures over the reference."""
        decoded = self.decode_latents(latents, generator=generator)
        pictures = self.image_processor.postprocess(decoded, output_type="pil", do_denormalize=[False] * len(decoded))
        alpha = PIL.Image.fromarray(np.rint(255 * mask).astype(np.uint8))
        results = [frame.paste(picture, reference, alpha) for picture in pictures]
        if output_type == "pil":
            return results
        array = np.stack([np.asarray(result, dtype=np.float32) / 255 for result in results])
        return array if output_type == "np" else torch.from_numpy(array).permute(0, 3, 1, 2)


def _single_picture(image: Any) -> PIL.Image.Image:
    """The reference, of whatever form, as a picture."""
    items = split_images(image)
    if len(items) != 1:
        raise ValueError(f"`image` must be one reference, got {len(items)}: edit one after another.")
    (image,) = items
    if isinstance(image, torch.Tensor):
        image = image.detach().float().cpu().movedim(0, -1).numpy()
    if isinstance(image, np.ndarray):
        image = image[..., 0] if image.shape[2:] == (1,) else image
        if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)) or 0 in image.shape:
            raise ValueError(
                "`image` must have shape (H, W, C), or (C, H, W) as a tensor, of 1, 3 or 4 channels, got "
                f"{image.shape}."
            )
        if image.dtype.kind == "f":
            if not (image.min() >= -1e-4 and image.max() <= 1 + 1e-4):
                raise ValueError(f"`image` must hold values in [0, 1], got {image.min():.4g} to {image.max():.4g}.")
            image = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
        if image.dtype != np.uint8:
            raise ValueError(f"`image` must hold floats in [0, 1] or uint8, got {image.dtype}.")
        return PIL.Image.fromarray(image)
    if not isinstance(image, PIL.Image.Image):
        raise TypeError(f"`image` must be a PIL image, an array or a tensor, got {type(image).__name__}.")
    return image


def _read_masks(mask_image: Any, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Masks (R, H, W) in [0, 1] whose sum is at most 1 everywhere."""
    is_list = isinstance(mask_image, (list, tuple))
    is_array = isinstance(mask_image, (np.ndarray, torch.Tensor))
    is_stack = is_array and mask_image.ndim == 3 and mask_image.shape[2] > 4  # else it has channels
    items = list(mask_image) if is_list or is_stack else [mask_image]
    if not items:
        raise ValueError("`mask_image` is an empty list: pass at least one mask.")
    masks = np.stack([_read_mask(item, size, index) for index, item in enumerate(items)])
    # Where regions overlap they share.
    shared: npt.NDArray[np.float32] = (masks / np.maximum(masks.sum(axis=0), 1)).astype(np.float32)
    return shared


def _read_mask(mask: Any, size: tuple[int, int], index: int) -> npt.NDArray[np.float32]:
    name = f"Mask {index}"
    values: Any
    if isinstance(mask, PIL.Image.Image):
        values = _scale_mask(np.asarray(to_rgb(mask, background=(0, 0, 0)).convert("L")))
    elif isinstance(mask, (np.ndarray, torch.Tensor)):
        array: Any = mask
        if isinstance(mask, torch.Tensor):
            mask = mask.detach().cpu()
            array = (mask.float() if mask.is_floating_point() else mask).numpy()
        while array.ndim > 2 and len(array) == 1:
            array = array[0]
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.ndim != 2 or array.dtype.kind not in "fuib":
            raise ValueError(
                f"{name} must have shape (H, W) and hold booleans, uint8 or floats in [0, 1], got {array.shape} of "
                f"{array.dtype}."
            )
        values = _scale_mask(array)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{name} must hold values in [0, 1], got {values.min():.4g} to {values.max():.4g}.")
    else:
        raise TypeError(f"{name} must be a PIL image, an array or a tensor, got {type(mask).__name__}.")
    height, width = size
    if values.shape != size:
        if 0 in values.shape or abs(values.shape[0] / values.shape[1] / (height / width) - 1) > 0.02:
            raise ValueError(
                f"{name} must have the reference's shape, {height}x{width} (height x width) pixels, got "
                f"{values.shape[0]}x{values.shape[1]}."
            )
        values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if values.max() < _SMALLEST_MASK:
        raise ValueError(f"{name} selects nothing: it must be white where the reference is to change.")
    result: npt.NDArray[np.float32] = values
    return result


def _scale_mask(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Values in [0, 1], where they are in range; 8 bits of nothing but 0 and 1 are labels."""
    is_scaled = values.dtype == np.uint8 and values.max(initial=0) > 1
    scaled: npt.NDArray[np.float32] = (values / np.float32(255 if is_scaled else 1)).astype(np.float32)
    return scaled


def _shrink_masks(masks: npt.NDArray[np.float32], frame: CropWindow, latent_size: tuple[int, int]) -> torch.Tensor:
    """Masks (R, 1, h, w) on the latents: a cell may change as much as the pixel in it that may change most."""
    height, width = frame.image_size
    window = np.zeros((len(masks), frame.height, frame.width), dtype=np.float32)
    window[:, -frame.top : height - frame.top, -frame.left : width - frame.left] = masks
    cells = F.adaptive_max_pool2d(torch.from_numpy(window)[:, None], latent_size)
    return cells / cells.sum(dim=0).clamp(min=1)


def _feather(mask: npt.NDArray[np.float32], feather: float) -> npt.NDArray[np.float32]:
    """The mask with a ramp from its edge inwards; zero stays zero, and the picture's own edge is none."""
    if feather == 0 or mask.min() > 0:
        return mask
    inside = cv2.copyMakeBorder((mask > 0).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    ramp: npt.NDArray[np.float32] = (mask * np.minimum(distance / (feather + 1), 1)).astype(np.float32)
    return ramp


def _share_noise(
    generator: torch.Generator | list[torch.Generator] | None, num_regions: int, num_images: int
) -> torch.Generator | list[torch.Generator] | None:
    """Generators from which all regions of an image draw the same noise, at every step."""
    if num_regions == 1:
        return generator
    if isinstance(generator, (list, tuple)):
        if len(generator) != num_images:
            raise ValueError(
                f"`generator` must be one generator or a list with one per result, got {len(generator)} for "
                f"{num_images}."
            )
        firsts = list(generator)
    else:
        device = torch.device("cpu") if generator is None else generator.device
        seeds = torch.randint(2**62, (num_images,), generator=generator, device=device).tolist()
        firsts = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    shared = list(firsts)
    for _ in range(num_regions - 1):
        for first in firsts:
            copy = torch.Generator(first.device)
            copy.set_state(first.get_state())
            shared.append(copy)
    return shared
