"""Pose transfer: make an image of a person in a target pose from another image of that person.

Paper: arXiv:2402.18078, Fig. 2 and Eq. 7. Official code: `pose_transfer_test.py` of YanzuoLu/CFLD @ f2ea2a7.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal, overload

import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from typing_extensions import Unpack

from ..processors.pose_map import PoseInput
from ..processors.source_image import ImageInput
from .checks import check_call, check_counts, check_finite, check_ip_adapter
from .control import encode_controls, match_controls
from .guidance import acts_at, select_rows
from .options import ControlImageInput, Generators, SamplingOptions, StepCallback
from .pipeline_output import Appearance, CFLDPipelineOutput, Images, PoseFeatures
from .pipeline_utils import CFLDPipelineBase


class CFLDPipeline(CFLDPipelineBase):
    """Put the person of an image into another pose with CFLD (Coarse-to-Fine Latent Diffusion).

    The pipeline inherits saving, loading, offloading and device placement from [`DiffusionPipeline`], and FreeU and
    fused projections from [`StableDiffusionMixin`]. It takes LoRAs ([`StableDiffusionLoraLoaderMixin`]) and
    IP-Adapters ([`IPAdapterMixin`]) made for Stable Diffusion 1.5's U-Net. The U-Net is the stock one; its attention
    processors are replaced only while its forward runs.

    Args:
        vae: Autoencoder between images and latents.
        unet: The denoising U-Net, whose keys and values in the up blocks' cross-attentions CFLD trains.
        scheduler: Any scheduler of diffusers for epsilon or v prediction; the published one is `DDPMScheduler`.
        source_encoder: S, computes the features of the source image.
        prompt_decoder: D, computes the coarse-grained prompt from the coarsest features; holds the null prompt.
        appearance_encoder: A, computes the query biases from the fine features.
        pose_adapter: P, computes the residuals of the target pose.
        feature_extractor: Only for an IP-Adapter: the preprocessing of its image.
        image_encoder: Only for an IP-Adapter: its CLIP vision model.
        controlnet: One or several ControlNets for Stable Diffusion 1.5. They act in all branches of Eq. 7, and their
            prompt is CFLD's, which no ControlNet of Stable Diffusion has seen in training.
        adapter: One or several T2I-Adapters for Stable Diffusion 1.5. Their residuals are added to those of
            `pose_adapter`, in all branches.
        frame_height: With `frame_width`, the aspect ratio of the training images; images and poses with another one
            are padded to it. None: everything is squashed. Saved in `model_index.json`.
        frame_width: See `frame_height`.

    Attributes:
        pose_estimator: Finds the poses of images that are passed as `pose`; see [`diffusers_cfld.pose_estimation`].
            None until you set one.
        target_size: (height, width) in pixels at which the model makes images without `height` and `width`, the size
            of the training.
        default_output_size: (height, width) in pixels of what a call without `height`, `width` and `output_size`
            returns: `target_size` with the aspect ratio of the training images.
        image_shape: (height, width) with the aspect ratio of the training images, or None.

    Raises:
        ValueError: Components do not fit together, for example because the prompt is not as wide as the U-Net's
            cross-attention, or only one of `frame_height` and `frame_width` is None.
    """

    def check_inputs(
        self,
        image: ImageInput | Appearance | None,
        pose: PoseInput | PoseFeatures | None,
        appearance: Appearance | None,
        output_type: str,
        output_size: tuple[int, int] | None,
    ) -> None:
        """Check the arguments that only this pipeline has.

        Args:
            image: As in `__call__`.
            pose: As in `__call__`.
            appearance: As in `__call__`.
            output_type: As in `__call__`.
            output_size: As in `__call__`.

        Raises:
            ValueError: An argument is missing or contradicts another.
        """
        if (image is None) == (appearance is None):
            raise ValueError("Pass exactly one of `image` and `appearance` (from `encode_appearance`).")
        if pose is None:
            raise ValueError("`pose` is missing: pass OpenPose-18 keypoints, a pose map or `encode_pose(...)`.")
        sides = output_size if isinstance(output_size, (tuple, list)) else ()
        is_size = len(sides) == 2 and all(isinstance(side, Integral) and side >= 1 for side in sides)
        if output_size is not None and (output_type == "latent" or not is_size):
            raise ValueError(
                "`output_size` must be (height, width) in whole pixels, and None for `output_type='latent'`, got "
                f"{output_size!r}."
            )

    @overload
    def __call__(
        self,
        image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        *,
        output_size: tuple[int, int] | None = None,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **kwargs: Unpack[SamplingOptions],
    ) -> CFLDPipelineOutput[list[PIL.Image.Image]]: ...

    @overload
    def __call__(
        self,
        image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        *,
        output_size: tuple[int, int] | None = None,
        output_type: str,
        return_dict: Literal[True] = True,
        **kwargs: Unpack[SamplingOptions],
    ) -> CFLDPipelineOutput: ...

    @overload
    def __call__(
        self,
        image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
        *,
        output_size: tuple[int, int] | None = None,
        output_type: str = "pil",
        return_dict: Literal[False],
        **kwargs: Unpack[SamplingOptions],
    ) -> tuple[Images]: ...

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Appearance | None = None,
        pose: PoseInput | PoseFeatures | None = None,
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
        output_size: tuple[int, int] | None = None,
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
        """Generate the source person in the target pose.

        Args:
            image: Source image or images: PIL, path or URL, array (H, W, 3) or tensor (3, H, W) in [0, 1], a batch or
                a list of these, or an [`Appearance`]. Squashed to the source encoder's size, as in the published code;
                images with an aspect ratio other than 256:176 are padded to it first (see [`fit_photo`], which also
                crops to the person).
            pose: Target pose or poses: OpenPose-18 keypoints in any form that [`Keypoints.from_any`] reads, pose maps
                (B, 21, H, W) in [0, 1], images of people in that pose (PIL or paths; needs `pipe.pose_estimator`),
                paths of keypoint files, a list of these, or [`PoseFeatures`]. Keypoints without a size are read as
                pixels of a 256x176 (height x width) image. You can pass one image with many poses, or many images
                with one pose.
            height: Height of the generated image in pixels, a multiple of 8; the U-Net's sample size by default, 512
                for the published model. At other sizes query biases and pose residuals are resized to the latents.
            width: Width of the generated image in pixels, likewise. If you set neither `height` nor `width` nor
                `output_size`, images get the aspect ratio of the training images, 512x352 with the published model.
            num_inference_steps: Denoising steps.
            timesteps: Custom timesteps, for schedulers that take them.
            sigmas: Custom sigmas, for schedulers that take them.
            guidance_scale: Both weights of Eq. 7, unless they are given separately. Values up to 1 turn guidance off,
                1.5 to 3 is a useful range. Values that are usual for text prompts, such as 7.5, give noise (seen with
                the small model). A U-Net that takes the scale as an input (LCM) gets it, for one evaluation per step.
            pose_guidance_scale: w_pose, >= 0: how strongly the pose is followed.
            appearance_guidance_scale: w_app, >= 0: how strongly the source (and the image of an IP-Adapter) is
                followed; 0 ignores it. Equal weights need two U-Net evaluations per step, a pose weight of 1 needs
                two, two weights of 1 need one, and all others need three.
            num_images_per_prompt: Images for each pair of source and pose.
            eta: DDIM's eta in [0, 1], ignored by other schedulers.
            generator: Source of randomness, one for the batch or a list with one per image.
            latents: (B, 4, height / 8, width / 8) standard-normal noise to start from.
            appearance: From [`~CFLDPipeline.encode_appearance`], instead of `image`.
            ip_adapter_image: Image for a loaded IP-Adapter.
            ip_adapter_image_embeds: Precomputed embeddings for a loaded IP-Adapter: the negative ones followed by the
                positive ones, or only the positive ones without guidance.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            output_size: (height, width) in pixels of a final bicubic resize with antialiasing; published results are
                measured at (256, 176) and (512, 352). By default images are resized only if `height` and `width` are
                left out too.
            return_dict: Return a [`CFLDPipelineOutput`] instead of a tuple.
            cross_attention_kwargs: Arguments for the attention processors, for example `{"scale": 0.5}` for a LoRA.
            guidance_rescale: Phi of arXiv:2305.08891 Sec. 3.4, in [0, 1].
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after each step; tensors that it
                returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: Which tensors the callback gets, among `_callback_tensor_inputs`.
            micro_batch_size: How many images the models process at once, if they do not all fit into memory. The
                results are those of one large batch, to rounding.
            control_image: For a `controlnet`: its image in any form that `image` can have, values in [0, 1], one or
                one per pair. It is padded and squashed like keypoints that were measured on it, so measure the pose
                on it too. For several ControlNets, a list with one image (or batch) for each, or for each pair a list
                with one image for each.
            controlnet_conditioning_scale: Factor of the ControlNets' residuals, or a list with one for each.
            control_guidance_start: Fraction of the steps after which they begin to act, or a list.
            control_guidance_end: Fraction of the steps after which they no longer act, or a list.
            adapter_image: For an `adapter`, likewise.
            adapter_conditioning_scale: Factor of the adapters' residuals, or a list with one for each.
            guidance_interval: (start, stop), fractions of the steps between which guidance acts (arXiv:2404.07724), as
                for ControlNets. At other steps both weights are 1, which takes one evaluation. None: at all steps.

        Returns:
            The images, in the order of the inputs; the images of one pair are next to each other.

        Raises:
            TypeError: An input has none of the accepted types.
            OSError: A file or URL cannot be read.
            ValueError: An input is out of range or contradicts another; the numbers of images, poses, generators and
                latents do not fit together; or the result is not finite and would be a black image.
            RuntimeError: Another thread is using the U-Net.

        Examples:
            ```py
            >>> import torch
            >>> from diffusers_cfld import CFLDPipeline, Keypoints

            >>> pipe = CFLDPipeline.from_pretrained("path/to/cfld", dtype=torch.float16).to("cuda")
            >>> pose = Keypoints.load("pose.json", size=(1024, 704))
            >>> image = pipe(image="person.jpg", pose=pose, generator=torch.manual_seed(0)).images[0]
            ```
        """
        # 0. Defaults
        if isinstance(image, Appearance) and appearance is None:
            image, appearance = None, image
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or []
        if output_size is None and height is None and width is None and output_type != "latent":
            output_size = self.default_output_size
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
        self.check_inputs(image, pose, appearance, output_type, output_size)
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

        # 2. Encode source and pose, once for all steps, and pair them
        if appearance is None:
            appearance = self.encode_appearance(image, micro_batch_size)  # type: ignore[arg-type]  # given
        pose_features = self.encode_pose(pose, micro_batch_size)  # type: ignore[arg-type]  # given
        conditions = self.prepare_conditions(
            appearance, pose_features, height, width, num_images_per_prompt, ip_adapter_image, ip_adapter_image_embeds
        )
        size = (height, width)
        encode_controls(self, conditions, controlnets, adapters, size, num_images_per_prompt, micro_batch_size)
        batch_size = conditions.batch_size
        # Copies, because a callback may change them in place, and the appearance may be used again.
        prompt_embeds = select_rows(conditions.prompt_embeds, slice(None), batch_size).clone()
        null_prompt_embeds = conditions.null_prompt_embeds.clone()

        # 3. Prepare timesteps
        timesteps, num_inference_steps = retrieve_timesteps(
            self.scheduler, num_inference_steps, device, timesteps, sigmas
        )
        self._num_timesteps = len(timesteps)

        # 4. Prepare latents and extra arguments of the scheduler's step
        latents = self.prepare_latents(batch_size, height, width, dtype, device, generator, latents)
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)

        # 5. Denoise
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

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, t, callback_kwargs) or {}
                    latents = callback_outputs.get("latents", latents)
                    prompt_embeds = callback_outputs.get("prompt_embeds", prompt_embeds)
                    null_prompt_embeds = callback_outputs.get("null_prompt_embeds", null_prompt_embeds)

                if i == len(timesteps) - 1 or ((i + 1) > num_warmup_steps and (i + 1) % self.scheduler.order == 0):
                    progress_bar.update()

        # 6. Decode
        images: Any = latents
        if output_type != "latent":
            images = self.decode_latents(latents, output_size, generator, micro_batch_size)
        check_finite(self, images)
        images = self.image_processor.postprocess(
            images, output_type=output_type, do_denormalize=[False] * len(images)
        )

        # 7. Free the models' hooks
        self.maybe_free_model_hooks()

        return CFLDPipelineOutput(images=images) if return_dict else (images,)
