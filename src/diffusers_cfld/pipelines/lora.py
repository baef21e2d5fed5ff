"""LoRA for a pipeline whose only text-to-image component is the U-Net."""

from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging

logger = logging.get_logger(__name__)


class UNetLoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """Load and save LoRAs of Stable Diffusion 1.5's U-Net.

    All of diffusers' LoRA interface works. Weights for a text encoder, which CFLD does not have, are left out.
    """

    _lora_loadable_modules = ["unet"]
    text_encoder = None

    @classmethod
    def load_lora_into_text_encoder(cls, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Skip the text encoder's part of a LoRA file.

        Args:
            state_dict: Weights of the LoRA file; keys that start with `text_encoder` are ignored.
            *args: Ignored.
            **kwargs: Ignored.
        """
        ignored = sum(key.startswith(cls.text_encoder_name) for key in state_dict)
        if ignored:
            logger.info(f"CFLD has no text encoder: {ignored} LoRA weights for one were left out.")

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fuse the loaded LoRAs into the U-Net's weights.

        Args:
            components: Components to fuse into; `None` is `["unet"]`, the only one.
            lora_scale: How strongly.
            safe_fusing: Whether weights that are not finite are an error.
            adapter_names: Which LoRAs; all active ones if `None`.
            **kwargs: As in diffusers.
        """
        super().fuse_lora(components or ["unet"], lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Take fused LoRAs out of the U-Net's weights again.

        Args:
            components: Components to unfuse; `None` is `["unet"]`, the only one.
            **kwargs: As in diffusers.
        """
        super().unfuse_lora(components=components or ["unet"], **kwargs)
