import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from testing_utils import VAE_CONFIG, fill

from diffusers_cfld.training import LatentCache, encode_moments, sample_latents

NAMES = ["a.png", "b.png", "c.png", "d.png"]
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
    cache = LatentCache(tmp_path / "new" / "latents", NAMES, vae, SIZE)
    assert len(cache) == 4
    cache.append(moments[:3], unreadable={"b.png": "is broken"})
    cache.append(moments[3:])
    assert cache.num_encoded == 4
    assert cache.unreadable == {"b.png": "is broken"}
    assert torch.equal(cache(["d.png", "a.png", "d.png"]), moments[[3, 0, 3]])
    with pytest.raises(KeyError, match=r"z\.png"):
        cache(["z.png"])


def test_it_goes_on_where_it_stopped(vae, moments, tmp_path):
    LatentCache(tmp_path, NAMES, vae, SIZE).append(moments[:2], unreadable={"a.png": "is broken"})
    # Killed between the moments and the note that they are there: what was written counts for nothing.
    values = np.lib.format.open_memmap(tmp_path / "moments.npy", mode="r+")
    values[2] = 7
    values.flush()
    again = LatentCache(tmp_path, NAMES, vae, SIZE)
    assert again.num_encoded == 2
    assert again.unreadable == {"a.png": "is broken"}
    again.append(moments[2:])
    complete = LatentCache(tmp_path, NAMES, vae, SIZE)
    assert complete.num_encoded == 4
    assert torch.equal(complete(NAMES), moments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moments.json", "moments.npy", "sizes.npy"]


def test_unreadable_pictures_are_known_in_another_folder_and_mended(vae, moments, tmp_path):
    for folder in ("data", "moved"):
        (tmp_path / folder).mkdir()
        for name in NAMES:
            (tmp_path / folder / name).write_bytes(b"a picture")
    names = {folder: [str(tmp_path / folder / name) for name in NAMES] for folder in ("data", "moved")}
    first = LatentCache(tmp_path / "latents", names["data"], vae, SIZE)
    first.append(torch.zeros_like(moments), unreadable={names["data"][1]: "is broken"})
    moved = LatentCache(tmp_path / "latents", names["moved"], vae, SIZE)
    assert moved.unreadable == {names["moved"][1]: "is broken"}
    with pytest.raises(KeyError):
        moved.mend(names["moved"][0], moments[:1])
    assert not moved(names["moved"][:1]).any()
    moved.mend(names["moved"][1], moments[1:2])
    again = LatentCache(tmp_path / "latents", names["data"], vae, SIZE)
    assert again.unreadable == {}
    assert torch.equal(again(names["data"][1:2]), moments[1:2])


def test_a_cache_that_names_what_is_unreadable_by_path_is_refused(vae, moments, tmp_path):
    LatentCache(tmp_path, NAMES, vae, SIZE).append(moments)
    state = json.loads((tmp_path / "moments.json").read_text())
    (tmp_path / "moments.json").write_text(json.dumps({**state, "unreadable": {"/data/a.png": "is broken"}}))
    with pytest.raises(ValueError, match="delete it or name another folder"):
        LatentCache(tmp_path, NAMES, vae, SIZE)


def test_two_that_begin_at_once_share_the_rows(vae, moments, tmp_path):
    one, other = (LatentCache(tmp_path, NAMES, vae, SIZE) for _ in range(2))
    other.append(moments[:1])
    one.append(moments)
    assert torch.equal(LatentCache(tmp_path, NAMES, vae, SIZE)(NAMES), moments)


def test_new_pictures_under_the_old_names_are_noticed_wherever_they_are(vae, moments, tmp_path):
    for folder in ("data", "moved"):
        (tmp_path / folder / "images").mkdir(parents=True)
        for name in NAMES:
            (tmp_path / folder / "images" / name).write_bytes(b"a picture")
    names = {folder: [str(tmp_path / folder / "images" / name) for name in NAMES] for folder in ("data", "moved")}
    LatentCache(tmp_path / "latents", names["data"], vae, SIZE).append(moments)
    assert LatentCache(tmp_path / "latents", names["moved"], vae, SIZE).num_encoded == 4
    Path(names["data"][1]).write_bytes(b"another picture")
    with pytest.raises(ValueError, match="caches the latents of other pictures"):
        LatentCache(tmp_path / "latents", names["data"], vae, SIZE)


@pytest.mark.parametrize("was_missing", [False, True])
def test_a_picture_that_is_put_back_or_repaired_is_mended_and_then_known(vae, moments, tmp_path, was_missing):
    names = [str(tmp_path / name) for name in NAMES]
    for name in names:
        Path(name).write_bytes(b"a picture")
    Path(names[1]).write_bytes(b"half")
    if was_missing:
        Path(names[1]).unlink()
    LatentCache(tmp_path / "latents", names, vae, SIZE).append(moments, unreadable={names[1]: "is broken"})
    Path(names[1]).write_bytes(b"the whole picture")
    cache = LatentCache(tmp_path / "latents", names, vae, SIZE)
    assert cache.unreadable == {names[1]: "is broken"}
    cache.mend(names[1], moments[:1])
    again = LatentCache(tmp_path / "latents", names, vae, SIZE)
    assert torch.equal(again(names), moments[[0, 0, 2, 3]])
    Path(names[1]).write_bytes(b"another picture")
    with pytest.raises(ValueError, match="caches the latents of other pictures"):
        LatentCache(tmp_path / "latents", names, vae, SIZE)


def test_a_disk_that_is_away_leaves_the_cache(vae, moments, tmp_path):
    names = [str(tmp_path / name) for name in NAMES]
    for name in names:
        Path(name).write_bytes(b"a picture")
    LatentCache(tmp_path / "latents", names, vae, SIZE).append(moments[:2])
    Path(names[0]).unlink()
    Path(names[3]).write_bytes(b"changed before its turn came")
    cache = LatentCache(tmp_path / "latents", names, vae, SIZE)
    assert cache.num_encoded == 2
    cache.append(moments[2:])
    assert torch.equal(LatentCache(tmp_path / "latents", names, vae, SIZE)(names), moments)
    # What came only for its turn is known from then on.
    (tmp_path / "others").mkdir()
    others = [str(tmp_path / "others" / name) for name in NAMES]
    cache = LatentCache(tmp_path / "more", others, vae, SIZE)
    for name in others:
        Path(name).write_bytes(b"a picture")
    cache.append(moments)
    Path(others[2]).write_bytes(b"another picture")
    with pytest.raises(ValueError, match="caches the latents of other pictures"):
        LatentCache(tmp_path / "more", others, vae, SIZE)


def test_moments_without_a_state_are_not_believed(vae, moments, tmp_path):
    LatentCache(tmp_path, NAMES, vae, SIZE).append(moments)
    (tmp_path / "moments.json").unlink()
    assert LatentCache(tmp_path, NAMES[:2], vae, SIZE).num_encoded == 0


@pytest.mark.parametrize("change", ["names", "order", "size", "weights"])
def test_another_data_set_or_vae_is_an_error(vae, moments, tmp_path, change):
    LatentCache(tmp_path, NAMES, vae, SIZE).append(moments)
    before = json.loads((tmp_path / "moments.json").read_text())
    names = {"names": [*NAMES[:3], "e.png"], "order": NAMES[::-1]}.get(change, NAMES)
    size = (32, 32) if change == "size" else SIZE
    other = fill(AutoencoderKL(**VAE_CONFIG), "other") if change == "weights" else vae
    with pytest.raises(ValueError, match="caches the latents of other pictures, of another size or from another VAE"):
        LatentCache(tmp_path, names, other, size)
    assert json.loads((tmp_path / "moments.json").read_text()) == before


def test_missing_moments_of_a_state_are_an_error(vae, moments, tmp_path):
    LatentCache(tmp_path, NAMES, vae, SIZE).append(moments)
    (tmp_path / "moments.npy").unlink()
    with pytest.raises(ValueError, match="delete it or name another folder"):
        LatentCache(tmp_path, NAMES, vae, SIZE)
    shutil.rmtree(tmp_path)
    assert LatentCache(tmp_path, NAMES, vae, SIZE).num_encoded == 0
