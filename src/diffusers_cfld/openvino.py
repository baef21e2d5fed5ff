"""Run the U-Net with OpenVINO, which computes the same faster on a CPU.

It needs `pip install 'diffusers-cfld[openvino]'`.

OpenVINO lays out the weights for the processor's instructions and fuses layers, for one shape of the inputs at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from .models.attention_processor import HybridGranularityAttnProcessor, hybrid_granularity_attention

__all__ = ["use_openvino"]


def use_openvino(unet: UNet2DConditionModel, precision: str = "f32") -> None:
    """Let OpenVINO run a U-Net on the CPU from now on.

    The first call of each image size converts the U-Net, in a minute or two at the published size and with as much
    memory again as its weights take; calls with another batch compile it anew, in seconds. Calls without a source or
    a pose, with a ControlNet, an IP-Adapter or `cross_attention_kwargs` run in PyTorch as before.

    Args:
        unet: The U-Net. Changes of its weights after the first call have no effect.
        precision: `"f32"` gives the results of float32, to rounding. `"bf16"` is several times as fast on processors
            with instructions for it (Intel AMX), with the differences of bfloat16.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: The U-Net is not in float32 on the CPU.

    Example:
        >>> use_openvino(pipe.unet)  # doctest: +SKIP
    """
    if unet.dtype != torch.float32 or unet.device.type != "cpu":
        raise ValueError(f"`unet` must be in float32 on the CPU, got {unet.dtype} on {unet.device}.")
    unet.forward = _OpenVINOForward(unet, precision)


class _FlatInputs(nn.Module):
    """The U-Net with its query biases among the inputs, where the conversion finds them."""

    def __init__(self, unet: UNet2DConditionModel, unet_forward: Callable[..., Any], layers: list[str]) -> None:
        super().__init__()
        self.unet, self.unet_forward, self.layers = unet, unet_forward, layers

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        residuals: tuple[torch.Tensor, ...],
        query_biases: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        with hybrid_granularity_attention(self.unet, dict(zip(self.layers, query_biases, strict=True))):
            output: UNet2DConditionOutput = self.unet_forward(
                sample, timestep, prompt_embeds, down_intrablock_additional_residuals=list(residuals)
            )
        return output.sample


class _OpenVINOForward:
    """What replaces `unet.forward`."""

    def __init__(self, unet: UNet2DConditionModel, precision: str) -> None:
        import openvino

        self.unet, self.unet_forward = unet, unet.forward
        self.core, self.options = openvino.Core(), {"INFERENCE_PRECISION_HINT": precision}
        # What each was made for, and the result.
        self.converted: tuple[Any, Any] = (None, None)
        self.compiled: tuple[Any, Any] = (None, None)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
        down_intrablock_additional_residuals: list[torch.Tensor] | None = None,
        **others: Any,
    ) -> Any:
        modules = dict(self.unet.named_modules())
        biases = {}
        for name, module in modules.items():
            processor = getattr(module, "processor", None)
            if isinstance(processor, HybridGranularityAttnProcessor) and processor.query_bias is not None:
                biases[name] = processor.query_bias
        residuals = tuple(down_intrablock_additional_residuals or ())
        if not biases or not residuals or any(value is not None for value in others.values()):
            others["down_intrablock_additional_residuals"] = down_intrablock_additional_residuals
            return self.unet_forward(sample, timestep, encoder_hidden_states, return_dict=return_dict, **others)
        time = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)
        inputs = (sample, time, encoder_hidden_states, residuals, tuple(biases.values()))
        # The number of modules, because a LoRA adds some.
        structure = (sample.shape[2:], len(residuals), list(biases), len(modules))
        if structure != self.converted[0]:
            self.converted, self.compiled = (structure, self._convert(inputs, list(biases))), (None, None)
        tensors = [*inputs[:3], *residuals, *inputs[4]]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if shapes != self.compiled[0]:
            model = self.converted[1].clone()
            model.reshape(dict(zip(model.inputs, shapes, strict=True)))
            self.compiled = (shapes, self.core.compile_model(model, "CPU", self.options))
        noise_pred = torch.from_numpy(self.compiled[1]([tensor.numpy(force=True) for tensor in tensors])[0])
        return UNet2DConditionOutput(noise_pred) if return_dict else (noise_pred,)

    def _convert(self, inputs: tuple[Any, ...], layers: list[str]) -> Any:
        import openvino

        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing
            return openvino.convert_model(_FlatInputs(self.unet, self.unet_forward, layers), example_input=inputs)
