"""Source photos of any kind to the encoder's input.

Photos of the training's shape get the published squash: bicubic with antialias to the encoder's size, mean 0.5 and
std 0.5 (YanzuoLu/CFLD `datasets/deepfashion.py` @ f2ea2a7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config

from ..image_utils import to_rgb
from .cropping import CropWindow, edge_strips, padding_crop

__all__ = ["ImageInput", "SourceImageProcessor", "split_images"]

OneImage: TypeAlias = PIL.Image.Image | npt.NDArray[Any] | torch.Tensor
ImageInput: TypeAlias = OneImage | Sequence[OneImage]
"""One image or several, as [`SourceImageProcessor.preprocess`] takes them."""


class SourceImageProcessor(ConfigMixin):
    """Bring source images into the form the source encoder takes.

    Args:
        height: Height of the encoder's input in pixels.
        width: Width of the encoder's input in pixels.
        background: Grey level in [0, 1] laid behind transparent pixels.
        image_shape: (height, width) whose aspect ratio the training images had, (256, 176) for the published model. A
            picture of another shape, unless it has the encoder's own size, is padded to it with the colour of
            its edges, so that people keep their proportions; `fit_photo` also crops. None: everything is squashed.
    """

    config_name = "source_image_processor_config.json"

    @register_to_config
    def __init__(
        self,
        height: int = 256,
        width: int = 256,
        background: float = 1.0,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()

    def preprocess(self, image: ImageInput) -> torch.Tensor:
        """Resize and normalise one image or a list of images.

        Args:
            image: A `PIL.Image` of any mode (its EXIF rotation is applied, transparency laid over `background`,
                greyscale and 16-bit converted); a numpy array (H, W, 3), (H, W) or (B, H, W, 3), floats in [0, 1] or
                8- or 16-bit integers; a float tensor (3, H, W) or (B, 3, H, W) in [0, 1]; or a list of these. Four
                channels are RGBA, one channel is grey.

        Returns:
            (B, 3, height, width), float32, [-1, 1]; the input is not modified.

        Raises:
            TypeError: An item is none of these.
            ValueError: An empty list, another number of channels or dimensions, values outside of [0, 1], NaN or
                infinite.
        """
        items = _as_list(image)
        if not items:
            raise ValueError("`image` is an empty list; pass at least one source image.")
        images = torch.cat([self._to_batch(item) for item in items])
        return 2.0 * images - 1.0

    def _to_batch(self, image: Any) -> torch.Tensor:
        """One item as (B, 3, height, width) in [0, 1]."""
        height, width = self.config.height, self.config.width
        if isinstance(image, PIL.Image.Image):
            if 0 in image.size:
                raise ValueError(
                    f"`image` must not be empty, got a picture of {image.size[0]}x{image.size[1]} pixels."
                )
            rgb = self.to_rgb(image)
            rgb = self.choose_crop((rgb.height, rgb.width)).crop(rgb)
            rgb = rgb.resize((width, height), PIL.Image.Resampling.BICUBIC)
            return torch.from_numpy(np.asarray(rgb, dtype=np.float32) / 255.0).permute(2, 0, 1)[None]
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3, 4):
                raise ValueError(
                    f"`image` as an array must have shape (height, width[, channels]) or (batch, height, width, "
                    f"channels), got {image.shape}."
                )
            channels = image.shape[-1] if image.ndim > 2 else 1
            if channels not in (1, 3, 4) or 0 in image.shape or image.dtype.kind not in "fu":
                raise ValueError(
                    "`image` as an array must have 1, 3 or 4 channels in its last axis and hold floats in [0, 1], "
                    f"uint8 or uint16, got shape {image.shape} of {image.dtype}."
                )
            if image.dtype == np.uint8 and image.ndim < 4:
                # The same 8-bit resize as for a PIL image, so that both forms of one photo agree exactly.
                return self._to_batch(PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
            if np.issubdtype(image.dtype, np.integer):
                if image.dtype not in (np.uint8, np.uint16):
                    raise ValueError(
                        f"`image` as an integer array must be uint8 or uint16, got {image.dtype}. Convert it, or pass "
                        "floats in [0, 1]."
                    )
                image = image / np.iinfo(image.dtype).max
            image = image[..., None] if image.ndim == 2 else image
            tensor = torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, -3)
        elif isinstance(image, torch.Tensor):
            if not image.is_floating_point():
                raise ValueError(f"`image` as a tensor must hold floats in [0, 1], got {image.dtype}.")
            tensor = image.detach().to("cpu", torch.float32)
        else:
            raise TypeError(
                "`image` must be a PIL image, a numpy array, a tensor or a list of these, got "
                f"{type(image).__name__}. Open a file with `diffusers.utils.load_image`."
            )
        tensor = tensor[None] if tensor.ndim == 3 else tensor
        if tensor.ndim != 4 or tensor.shape[1] not in (1, 3, 4) or 0 in tensor.shape:
            raise ValueError(
                "`image` must have 1, 3 or 4 channels, channels last for arrays and first for tensors, got shape "
                f"{tuple(image.shape)}."
            )
        low, high = tensor.min().item(), tensor.max().item()
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # also false for NaN
            raise ValueError(
                f"`image` must hold values in [0, 1], got {low:.4g} to {high:.4g}. Rescale it; PIL images need not be."
            )
        if tensor.shape[1] == 4:
            alpha = tensor[:, 3:]
            tensor = tensor[:, :3] * alpha + self.config.background * (1 - alpha)
        elif tensor.shape[1] == 1:
            tensor = tensor.expand(-1, 3, -1, -1)
        window = self.choose_crop((tensor.shape[2], tensor.shape[3]))
        if not window.is_whole_image:
            tensor = torch.stack([_pad(item, window) for item in tensor])
        if tuple(tensor.shape[2:]) != (height, width):
            tensor = F.interpolate(tensor, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
        return tensor.clamp(0, 1)

    def choose_crop(self, size: tuple[int, int]) -> CropWindow:
        """Choose the part of an image that the encoder sees.

        Args:
            size: (height, width) of the image, pixels.

        Returns:
            The whole image, or a window of the configured shape around it.
        """
        return padding_crop(size, self.config.image_shape, (self.config.height, self.config.width))

    def to_rgb(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Turn a picture of any mode upright and into 8-bit RGB, transparency over the background.

        Args:
            image: The picture.

        Returns:
            RGB.

        Raises:
            ValueError: A picture of mode `F` leaves [0, 1].
        """
        grey = round(255 * self.config.background)
        return to_rgb(image, (grey, grey, grey))


def split_images(image: ImageInput) -> list[OneImage]:
    """Take a batch apart.

    Args:
        image: As in [`SourceImageProcessor.preprocess`].

    Returns:
        Its images, one by one.
    """
    items: list[OneImage] = []
    for item in _as_list(image):
        items += list(item) if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4 else [item]
    return items


def _as_list(image: Any) -> list[OneImage]:
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _pad(image: torch.Tensor, window: CropWindow) -> torch.Tensor:
    """Pad an image (3, H, W) to a window that holds the whole of it, as `CropWindow.crop` does with 8 bits."""
    height, width = window.image_size
    edges = edge_strips(image.permute(1, 2, 0).numpy(), window)
    color = torch.from_numpy(np.median(edges, axis=0))
    padded = color[:, None, None].repeat(1, window.height, window.width)
    padded[:, -window.top : height - window.top, -window.left : width - window.left] = image
    return padded
