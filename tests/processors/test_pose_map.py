"""Pose maps: parity with the published renderer, and what the processor accepts and refuses."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffusers_cfld.pose.keypoints import Keypoints
from diffusers_cfld.processors.cropping import fit_keypoints, has_shape
from diffusers_cfld.processors.pose_map import PoseProcessor, read_poses, render_pose_map
from diffusers_cfld.small_model import example_poses

GOLDEN = Path(__file__).parents[1] / "data" / "pose_maps.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def poses(golden):
    columns = {name: golden[f"{name}.keypoints_yx"].T for name in ("front", "partial", "edge")}
    return {name: Keypoints.from_deepfashion(y, x) for name, (y, x) in columns.items()}


@pytest.fixture
def processor():
    return PoseProcessor(height=64, width=48)


def rendered(pose):
    return torch.from_numpy(render_pose_map(pose, (64, 48)))


# Rendering ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (128, 64)])
@pytest.mark.parametrize("name", ["front", "partial", "edge"])
def test_parity_with_the_published_renderer(golden, poses, name, size):
    pose_map = render_pose_map(poses[name], size)
    assert pose_map.shape == (21, *size)
    assert pose_map.dtype == np.float32
    key = f"{size[0]}x{size[1]}"
    if size == (256, 256):
        # The reference keeps every third row and column at this size.
        pose_map = pose_map[:, ::3, ::3]
    assert np.array_equal(pose_map[:3], np.float32(golden[f"{name}.skeleton.{key}"]) / np.float32(255))
    # Values below 3e-18 are left at zero; all others are equal.
    np.testing.assert_allclose(pose_map[3:].ravel()[::7], golden[f"{name}.heat_maps.{key}"], rtol=0, atol=3e-18)


def test_gaussians_equal_their_definition(poses):
    pose = poses["edge"]
    pose_map = render_pose_map(pose, (300, 200))
    rows, columns = np.mgrid[:300, :200]
    for heat_map, (x, y), seen in zip(pose_map[3:], np.trunc(pose.rescale((300, 200)).xy), pose.visible, strict=True):
        expected = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 72) if seen else np.zeros((300, 200))
        np.testing.assert_allclose(heat_map, expected, rtol=0, atol=1e-7)


def test_render_refuses(poses):
    for size in ((0, 4), 256):
        with pytest.raises(ValueError, match=r"`size` must be \(height, width\)"):
            render_pose_map(poses["front"], size)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, (18, 2), elements=st.floats(-1e3, 1e3) | st.floats(-1e300, 1e300)),
    hnp.arrays(np.bool_, 18).filter(np.any),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_rendering_stays_in_range_and_modifies_nothing(xy, visible, size):
    pose = Keypoints(xy, visible)
    before = pose.to_array()
    pose_map = render_pose_map(pose, size)
    assert pose_map.shape == (21, *size)
    assert pose_map.min() >= 0
    assert pose_map.max() <= 1
    assert not pose_map[3:][~visible].any()
    assert np.array_equal(before, pose.to_array())
    assert pose.draw(size).size == size[::-1]


# The processor ------------------------------------------------------------------------------------------------------


def test_config_round_trip(tmp_path):
    PoseProcessor(height=512, width=352).save_config(tmp_path)
    assert (tmp_path / "pose_processor_config.json").is_file()
    loaded = PoseProcessor.from_config(PoseProcessor.load_config(tmp_path))
    assert (loaded.config.height, loaded.config.width) == (512, 352)
    assert dict(PoseProcessor().config)["height"] == 256


def columns(pose, form):
    return tuple(form(column) for column in pose.to_deepfashion())


@pytest.mark.parametrize(
    "form",
    [
        lambda pose: pose,
        lambda pose: pose.xy,
        lambda pose: pose.xy.tolist(),
        lambda pose: [torch.tensor(row) for row in pose.xy],
        lambda pose: torch.tensor(pose.to_array()),
        lambda pose: torch.tensor(pose.xy)[None],
        lambda pose: columns(pose, list),
        lambda pose: columns(pose, np.array),
        lambda pose: columns(pose, str),
        lambda pose: "name:{}:{}".format(*columns(pose, str)),
        lambda pose: pose.to_openpose(),
        lambda pose: [pose.to_openpose()],
        lambda pose: [pose],
    ],
)
def test_one_pose(processor, poses, form):
    pose_map = processor.preprocess(form(poses["partial"]))
    assert pose_map.dtype == torch.float32
    assert torch.equal(pose_map, rendered(poses["partial"])[None])


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda pair: [pose.xy for pose in pair],
        lambda pair: [pose.xy.tolist() for pose in pair],
        lambda pair: np.stack([pose.xy for pose in pair]),
        lambda pair: torch.tensor(np.stack([pose.to_array() for pose in pair])),
        lambda pair: [pose.to_openpose() for pose in pair],
        lambda pair: [str(pose.xy.tolist()) for pose in pair],
        lambda pair: ["name:{}:{}".format(*columns(pose, str)) for pose in pair],
        lambda pair: [columns(pose, list) for pose in pair],
        lambda pair: [pair[0], pair[1].xy],
    ],
)
def test_several_poses(processor, poses, form):
    pair = [poses["front"], poses["partial"]]
    assert torch.equal(processor.preprocess(form(pair)), torch.stack([rendered(pose) for pose in pair]))


def test_flat_openpose_numbers(processor):
    flat = np.tile([30.0, 40.0, 1.0], 18)
    expected = rendered(Keypoints.from_openpose(flat, size=(256, 176)))[None]
    assert torch.equal(processor.preprocess(flat.tolist(), size=(256, 176)), expected)
    assert processor.preprocess([flat.tolist()] * 3, size=(256, 176)).shape[0] == 3
    assert processor.preprocess([flat, flat], size=(256, 176)).shape[0] == 2


def test_coco_batch_and_frame(processor):
    coco = np.full((2, 17, 2), 100)
    expected = rendered(Keypoints.from_coco(coco[0], size=(400, 300)))
    assert torch.equal(processor.preprocess(coco, size=(400, 300)), torch.stack([expected, expected]))


def test_twenty_one_poses_are_no_map(processor):
    assert processor.preprocess(np.full((21, 18, 2), 40)).shape == (21, 21, 64, 48)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_pass_through(processor, dtype):
    maps = torch.rand(2, 21, 8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = maps.to(torch.float32)
    assert torch.equal(processor.preprocess(maps), expected)
    assert torch.equal(processor.preprocess(maps[0]), expected[:1])
    assert torch.equal(processor.preprocess([maps[0], maps[1]]), expected)
    assert torch.equal(processor.preprocess((maps, maps[1])), torch.cat([expected, expected[1:]]))


def test_array_maps_pass_through_without_sharing(processor, poses):
    pose_map = render_pose_map(poses["front"], (64, 48))
    pose_map.setflags(write=False)
    result = processor.preprocess([pose_map, pose_map[:, ::-1].astype(">f8")])
    assert torch.equal(result[0], rendered(poses["front"]))
    assert torch.equal(result[1], rendered(poses["front"]).flip(1))
    result.zero_()
    assert pose_map.any()


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        ([], "`pose` is empty"),
        (np.zeros((0, 18, 2)), "`pose` is empty"),
        (torch.zeros(0, 21, 8, 8), "`pose` is empty"),
        (torch.zeros(3, 64, 64), r"\(21, H, W\) or \(B, 21, H, W\), .* of shape \(3, 64, 64\)"),
        (torch.zeros(2, 18, 64, 64), r"of shape \(18, 64, 64\)"),
        (torch.zeros(21, 8, 8, dtype=torch.uint8), r"must hold floats in \[0, 1\]"),
        (np.zeros((21, 8, 8), dtype=np.uint8), r"must hold floats in \[0, 1\]"),
        (torch.full((21, 8, 8), float("nan")), r"must hold values in \[0, 1\], got nan"),
        (torch.full((21, 8, 8), 255.0), r"must hold values in \[0, 1\], got 255 to 255"),
        ([torch.zeros(21, 8, 8), np.full((18, 2), 40)], r"Pose 0 of 2: .* got numbers of shape \(21, 8, 8\)"),
        (
            [np.full((18, 2), 40), np.full((18, 2), np.nan)],
            "Pose 1 of 2: All 18 joints are missing",
        ),
        (np.full((18, 2), 400), r"pass `size=\(height, width\)`"),
        ("nothing", "A pose must be .* got the string 'nothing'"),
    ],
)
def test_refuses(processor, pose, message):
    with pytest.raises(ValueError, match=message):
        processor.preprocess(pose)


@pytest.mark.parametrize("pose", [None, 3, object(), [None, None]])
def test_refuses_other_types(processor, pose):
    with pytest.raises(TypeError, match="A pose must be"):
        processor.preprocess(pose)


def test_values_may_leave_the_range_by_rounding(processor):
    maps = torch.full((1, 21, 8, 8), 1.0005)
    assert torch.equal(processor.preprocess(maps), maps)


def test_preprocess_modifies_nothing(processor, poses):
    maps = torch.rand(1, 21, 8, 8)
    keypoints = poses["front"].to_array()
    copies = maps.clone(), keypoints.copy()
    processor.preprocess(maps.to(torch.float64))
    processor.preprocess(maps)
    processor.preprocess(keypoints)
    assert torch.equal(maps, copies[0])
    assert np.array_equal(keypoints, copies[1])


# Images and files among poses ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))


def test_only_images_and_files_are_read(image, tmp_path):
    pose = example_poses()[0]
    wide = Keypoints(pose.xy * 0.4 + [300, 20], pose.visible, None, (200, 700))
    estimator = lambda image: [wide]  # noqa: E731
    image.save(tmp_path / "other.png")
    (tmp_path / "pose.json").write_text(json.dumps(pose.to_openpose()))
    expected = fit_keypoints(wide)[0]
    assert has_shape(expected.size, (256, 176))
    assert read_poses(image, estimator) == expected
    assert read_poses(tmp_path / "other.png", estimator) == expected
    assert read_poses(str(tmp_path / "other.png"), estimator) == expected
    assert read_poses(str(tmp_path / "pose.json"), None) == pose
    mixed = read_poses([image, pose, str(tmp_path / "pose.json")], estimator)
    assert mixed == [expected, pose, pose]
    # What is no file stays what it is.
    for other in (pose, [[1, 2]] * 18, "name.jpg:[1]:[2]", ("[1]", "[2]"), {"people": []}, torch.zeros(21, 4, 4)):
        assert read_poses(other, None) is other


def test_files_that_cannot_be_read_are_named(image, tmp_path):
    with pytest.raises(ValueError, match=r"no pose estimator: .*`pip install 'diffusers-cfld\[vitpose\]'`"):
        read_poses(image, None)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("nowhere.png", "broken.png"):
        with pytest.raises(OSError, match=name):
            read_poses(tmp_path / name, lambda image: [])
    image.save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"No pose can be read from '.*empty.png': Nobody was found"):
        read_poses(str(tmp_path / "empty.png"), lambda image: [])
    with pytest.raises(ValueError, match="No pose can be read from `pose`: Nobody"):
        read_poses(image, lambda image: [])
