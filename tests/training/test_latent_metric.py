from types import SimpleNamespace

import pytest
import torch
from testing_utils import tiny_components
from torch import nn

from diffusers_cfld.training import pixel_metric


class LinearDecoder(nn.Module):
    """Every cell becomes a block of 4 x 4 pixels: its Jacobian is known."""

    dtype = torch.float32
    config = SimpleNamespace(latent_channels=4, scaling_factor=0.5)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(4, 3, 4, stride=4)

    def decode(self, latents):
        return SimpleNamespace(sample=self.layer(latents))


def test_a_linear_decoder():
    torch.manual_seed(0)
    vae = LinearDecoder()
    jacobian = vae.layer.weight.detach().flatten(1)  # (4, pixels of a block)
    expected = jacobian @ jacobian.T
    generator = torch.Generator().manual_seed(0)
    metric = pixel_metric(vae, torch.randn(4, 4, 16, 16), generator=generator, num_probes=8)
    torch.testing.assert_close(metric, expected * 4 / expected.trace(), atol=0.05, rtol=0)
    torch.testing.assert_close(metric.trace(), torch.tensor(4.0))
    assert vae.layer.weight.grad is None


def test_an_autoencoder():
    vae = tiny_components()["vae"]
    latents = torch.randn(2, vae.config.latent_channels, 8, 8)
    metrics = [pixel_metric(vae, latents, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*metrics)
    torch.testing.assert_close(metrics[0], metrics[0].T)
    assert torch.linalg.eigvalsh(metrics[0]).min() > -1e-4
    assert not latents.requires_grad


def test_errors():
    vae = LinearDecoder()
    with pytest.raises(ValueError, match=r"`latents` must have shape \(batch, 4, h, w\), got \(1, 3, 8, 8\)"):
        pixel_metric(vae, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="`num_probes` must be at least 1, got 0"):
        pixel_metric(vae, torch.zeros(1, 4, 8, 8), num_probes=0)
