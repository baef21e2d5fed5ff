import json

import numpy as np
import pytest
import torch

from diffusers_cfld.training import AlignmentMaps, LossWeightMaps, PictureMaps


def write_maps(folder, maps, names):
    np.save(folder / "maps.npy", maps)
    (folder / "names.json").write_text(json.dumps(names))


def test_rows_by_name_standardised(tmp_path):
    maps = np.random.default_rng(0).normal(3, 2, (5, 3, 4, 4)).astype(np.float16)
    maps[:, 2] = 7
    names = [f"images/{number}.png" for number in range(5)]
    write_maps(tmp_path, maps, names)
    found = AlignmentMaps(tmp_path, tmp_path / "data")
    assert found.num_maps == 3
    chosen = found([str(tmp_path / "data" / "images" / f"{number}.png") for number in (4, 0, 1, 2, 3)])
    assert chosen.shape == (5, 3, 4, 4)
    assert chosen.dtype == torch.float32
    torch.testing.assert_close(chosen[:, :2].mean((0, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(chosen[:, :2].std((0, 2, 3), correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert not chosen[:, 2].any()
    scaled = torch.from_numpy(maps[4, 0].astype(np.float32))
    torch.testing.assert_close(chosen[0, 0] - chosen[0, 0, 0, 0], (scaled - scaled[0, 0]) / 2, atol=0.3, rtol=0)


def test_rows_as_they_are_and_weights_of_mean_one(tmp_path):
    maps = np.random.default_rng(0).uniform(0, 4, (5, 1, 4, 4)).astype(np.float32)
    names = [f"{number}.png" for number in range(5)]
    write_maps(tmp_path, maps, names)
    files = [str(tmp_path / name) for name in names]
    assert torch.equal(PictureMaps(tmp_path, tmp_path)(files[2:4]), torch.from_numpy(maps[2:4]))
    weights = LossWeightMaps(tmp_path, tmp_path)(files)
    assert weights.shape == (5, 1, 4, 4)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights / weights[0, 0, 0, 0], torch.from_numpy(maps / maps[0, 0, 0, 0]))
    for wrong in (np.concatenate([maps, maps], axis=1), maps - 1, maps * np.nan, maps * 0):
        write_maps(tmp_path, wrong, names)
        with pytest.raises(
            ValueError, match=r"must have shape \(N, 1, h, w\) and hold finite numbers >= 0, not all 0"
        ):
            LossWeightMaps(tmp_path, tmp_path)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no maps\.npy"):
        AlignmentMaps(tmp_path, tmp_path)
    np.save(tmp_path / "maps.npy", np.zeros((2, 3, 4, 4)))
    with pytest.raises(FileNotFoundError, match=r"has no names\.json"):
        AlignmentMaps(tmp_path, tmp_path)
    write_maps(tmp_path, np.zeros((2, 3, 4, 4)), ["a.png"])
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 4\) for 1 names"):
        AlignmentMaps(tmp_path, tmp_path)
    write_maps(tmp_path, np.zeros((1, 3, 4)), ["a.png"])
    with pytest.raises(ValueError, match=r"must have shape \(N, K, h, w\)"):
        AlignmentMaps(tmp_path, tmp_path)
    write_maps(tmp_path, np.zeros((1, 3, 4, 4)), ["a.png"])
    with pytest.raises(ValueError, match=r"does not name the picture 'b\.png'"):
        AlignmentMaps(tmp_path, tmp_path)([str(tmp_path / "b.png")])
    maps = AlignmentMaps(tmp_path, tmp_path)
    assert maps.find_rows([str(tmp_path / "a.png")]) == [0]
    with pytest.raises(ValueError, match=r"names\.json' does not name the picture 'b\.png'"):
        maps.find_rows([str(tmp_path / name) for name in ("a.png", "b.png")])
