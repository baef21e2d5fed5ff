"""Turn source images of any kind into the encoder's input.

Images with the aspect ratio of the training images are squashed as in the published code: bicubic with antialiasing to
the encoder's size, mean 0.5 and std 0.5 (YanzuoLu/CFLD `datasets/deepfashion.py` @ f2ea2a7).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor

from ..image_utils import load_image, to_rgb
from .cropping import CropWindow, edge_strips, padding_crop

OpenImage: TypeAlias = PIL.Image.Image | npt.NDArray[Any] | torch.Tensor
OneImage: TypeAlias = OpenImage | str | os.PathLike[str]
ImageInput: TypeAlias = OneImage | Sequence[OneImage]
"""One image or several, in any form that [`SourceImageProcessor.preprocess`] takes."""


class SourceImageProcessor(ConfigMixin):
    """Turn source images into the input of the source encoder.

    Args:
        height: Height of the encoder's input in pixels.
        width: Width of the encoder's input in pixels.
        background: Grey level in [0, 1] behind transparent pixels.
        image_shape: (height, width) with the aspect ratio of the training images, (256, 176) for the published model.
            An image with another aspect ratio is padded to it with the colour of its edges (unless it has the
            encoder's own size), so that people keep their proportions; `fit_photo` also crops. None: every image is
            squashed.
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

    def preprocess(self, image: ImageInput, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Resize and normalise one image or a list of images.

        Args:
            image: A `PIL.Image` of any mode (EXIF rotation is applied, transparent parts are laid over `background`,
                and greyscale and 16-bit images are converted); its path or URL; a numpy array (H, W, 3), (H, W) or
                (B, H, W, 3) with floats in [0, 1] or 8- or 16-bit integers; a float tensor (3, H, W) or (B, 3, H, W)
                in [0, 1]; or a list of these. Four channels are RGBA, one channel is grey.
            size: (height, width) of the result in pixels; the encoder's by default. It does not change which part of
                an image is shown.

        Returns:
            (B, 3, height, width), float32, [-1, 1]; the input is not modified.

        Raises:
            TypeError: An item is none of these.
            OSError: A file or URL cannot be read as an image.
            ValueError: The list is empty, the number of channels or dimensions is wrong, or values are NaN or outside
                [0, 1].
        """
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 4:
            image = image / 255  # to be resized as floats, unlike a single 8-bit image
        images = split_images(image)
        if not images:
            raise ValueError("`image` is an empty list: pass at least one source image.")
        size = (self.config.height, self.config.width) if size is None else size
        return torch.cat([self._preprocess_one(item, size) for item in images])

    def _preprocess_one(self, image: OpenImage, size: tuple[int, int]) -> torch.Tensor:
        """Preprocess one image to (1, 3, height, width) in [-1, 1]."""
        height, width = size
        if isinstance(image, PIL.Image.Image) or _is_8_bit(image):
            # The same 8-bit resize for both, so that both forms of one image agree exactly.
            rgb = self.to_rgb(image)
            rgb = self.choose_crop((rgb.height, rgb.width)).crop(rgb)
            resized = np.array(rgb.resize((width, height), PIL.Image.Resampling.BICUBIC))
            # As `VaeImageProcessor` does, in place.
            return torch.from_numpy(resized).permute(2, 0, 1)[None].contiguous().float().div_(255).mul_(2).sub_(1)
        pixels = self._to_tensor(image)
        window = self.choose_crop((pixels.shape[1], pixels.shape[2]))
        if not window.is_whole_image:
            pixels = _pad(pixels, window)
        if tuple(pixels.shape[1:]) != (height, width):
            pixels = F.interpolate(pixels[None], size=(height, width), mode="bicubic", antialias=True)[0]
        return 2.0 * pixels[None].clamp(0, 1) - 1.0

    def _to_tensor(self, image: npt.NDArray[Any] | torch.Tensor) -> torch.Tensor:
        """Convert an array or tensor to (3, H, W) in [0, 1]."""
        pixels: Any = image
        if isinstance(pixels, np.ndarray):
            if pixels.dtype == np.uint16:
                pixels = pixels / np.float64(65535)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if pixels.dtype.kind == "f":
                pixels = torch.from_numpy(np.array(pixels, dtype=np.float32)).movedim(-1, 0)
        elif not isinstance(pixels, torch.Tensor):
            raise TypeError(
                "`image` must be a PIL image, a path or URL, a numpy array, a tensor or a list of these, got "
                f"{type(image).__name__}."
            )
        is_float = isinstance(pixels, torch.Tensor) and pixels.is_floating_point()
        if not is_float or pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
            raise ValueError(
                "`image` must hold floats in [0, 1] (in arrays also uint8 or uint16) and have 1, 3 or 4 channels, in "
                "the last axis of arrays and the first axis of tensors, got "
                f"{image.dtype} of shape {tuple(image.shape)}."
            )
        pixels = pixels.detach().to("cpu", torch.float32)
        low, high = pixels.min().item(), pixels.max().item()
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # also false for NaN
            raise ValueError(f"`image` must hold values in [0, 1], got {low:.4g} to {high:.4g}: rescale it.")
        if pixels.shape[0] == 4:
            color, alpha = pixels[:3], pixels[3:]
            return color * alpha + self.config.background * (1 - alpha)
        return pixels.expand(3, -1, -1)

    def choose_crop(self, size: tuple[int, int]) -> CropWindow:
        """Choose the part of an image that the encoder sees.

        Args:
            size: (height, width) of the image, pixels.

        Returns:
            The whole image, or a window of the configured shape around it.
        """
        return padding_crop(size, self.config.image_shape, (self.config.height, self.config.width))

    def to_rgb(self, image: OpenImage) -> PIL.Image.Image:
        """Convert an image to upright 8-bit RGB, with its transparent parts over the background.

        Args:
            image: An image of any mode, an array or a tensor, as in [`SourceImageProcessor.preprocess`].

        Returns:
            An RGB image.

        Raises:
            TypeError: It is none of these.
            ValueError: Values lie outside [0, 1], or an array or tensor has the wrong shape.
        """
        if _is_8_bit(image):
            image = PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        if not isinstance(image, PIL.Image.Image):
            (rgb,) = VaeImageProcessor.numpy_to_pil(self._to_tensor(image).clamp(0, 1).permute(1, 2, 0).numpy())
            return rgb
        grey = round(255 * self.config.background)
        return to_rgb(image, (grey, grey, grey))


def _is_8_bit(image: object) -> TypeGuard[npt.NDArray[np.uint8]]:
    return isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3)


def split_images(image: ImageInput) -> list[OpenImage]:
    """Split a batch, and open files and URLs.

    Args:
        image: As in [`SourceImageProcessor.preprocess`].

    Returns:
        The images, one by one; arrays and tensors with a batch axis are split.

    Raises:
        OSError: A file or URL cannot be read as an image.
        ValueError: A file's EXIF data is damaged.
    """
    items: Any = image if isinstance(image, (list, tuple)) else [image]
    items = [load_image(item) if isinstance(item, (str, os.PathLike)) else item for item in items]
    is_batch = [isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4 for item in items]
    return [one for item, several in zip(items, is_batch, strict=True) for one in (item if several else [item])]


def _pad(image: torch.Tensor, window: CropWindow) -> torch.Tensor:
    """Pad an image (3, H, W) to a window that contains all of it, as `CropWindow.crop` does for 8-bit images."""
    height, width = window.image_size
    edges = edge_strips(image.permute(1, 2, 0).numpy(), window)
    color = torch.from_numpy(np.median(edges, axis=0))
    padded = color[:, None, None].repeat(1, window.height, window.width)
    padded[:, -window.top : height - window.top, -window.left : width - window.left] = image
    return padded
