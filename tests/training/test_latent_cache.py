import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from testing_utils import VAE_CONFIG, fill

from diffusers_cfld.training import LatentCache, encode_moments, sample_latents

IMAGES = ["data/a.png", "data/b.png", "data/c.png", "data/d.png"]
SIZE = (32, 24)


@pytest.fixture(scope="module")
def vae():
    return fill(AutoencoderKL(**VAE_CONFIG), "vae")


@pytest.fixture
def moments(vae):
    pixel_values = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return encode_moments(vae, pixel_values)


def test_moments_and_samples_are_those_of_the_posterior(vae):
    pixel_values = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = encode_moments(vae, pixel_values)
    assert moments.shape == (2, 8, 4, 3)
    assert not moments.requires_grad
    posterior = vae.encode(pixel_values).latent_dist
    noise = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    expected = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
    assert torch.equal(sample_latents(vae, moments, noise), expected)
    sampled = posterior.sample(torch.Generator().manual_seed(1)) * vae.config.scaling_factor
    assert torch.equal(sample_latents(vae, moments, noise), sampled)


def test_what_is_stored_comes_back_by_name(vae, moments, tmp_path):
    cache = LatentCache(tmp_path / "new" / "latents", IMAGES, vae, SIZE)
    cache.append(moments[:3], unreadable={"data/b.png": "is broken"})
    cache.append(moments[3:])
    assert cache.num_encoded == 4
    assert cache.unreadable == {"data/b.png": "is broken"}
    assert torch.equal(cache(["data/d.png", "data/a.png", "data/d.png"]), moments[[3, 0, 3]])
    with pytest.raises(KeyError, match=r"z\.png"):
        cache(["z.png"])


def test_it_goes_on_where_it_stopped(vae, moments, tmp_path):
    LatentCache(tmp_path, IMAGES, vae, SIZE).append(moments[:2], unreadable={"data/a.png": "is broken"})
    # Killed between the moments and the note that they are there: what was written counts for nothing.
    values = np.lib.format.open_memmap(tmp_path / "moments.npy", mode="r+")
    values[2] = 7
    values.flush()
    # The images may have moved meanwhile.
    moved = [image.replace("data", "elsewhere") for image in IMAGES]
    again = LatentCache(tmp_path, moved, vae, SIZE)
    assert again.num_encoded == 2
    assert again.unreadable == {"elsewhere/a.png": "is broken"}
    again.append(moments[2:])
    complete = LatentCache(tmp_path, IMAGES, vae, SIZE)
    assert complete.num_encoded == 4
    assert torch.equal(complete(IMAGES), moments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moments.json", "moments.npy"]


def test_a_cache_without_its_record_is_made_again(vae, moments, tmp_path):
    LatentCache(tmp_path, IMAGES, vae, SIZE).append(moments)
    (tmp_path / "moments.json").unlink()
    assert LatentCache(tmp_path, IMAGES[:2], vae, SIZE).num_encoded == 0


@pytest.mark.parametrize("change", ["names", "order", "size", "shape", "weights"])
def test_the_cache_of_other_images_or_another_vae_is_refused(vae, moments, tmp_path, change):
    LatentCache(tmp_path, IMAGES, vae, SIZE).append(moments)
    before = json.loads((tmp_path / "moments.json").read_text())
    images = {"names": [*IMAGES[:3], "e.png"], "order": IMAGES[::-1]}.get(change, IMAGES)
    size = (32, 32) if change == "size" else SIZE
    other = fill(AutoencoderKL(**VAE_CONFIG), "other") if change == "weights" else vae
    with pytest.raises(ValueError, match="has the latents of other images, another size or shape, or another VAE"):
        LatentCache(tmp_path, images, other, size, (256, 176) if change == "shape" else None)
    assert json.loads((tmp_path / "moments.json").read_text()) == before
