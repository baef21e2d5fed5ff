"""Drawn figures in pairs: one person in two poses, with exact keypoints."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import PIL.Image

from diffusers_cfld import Keypoints

from .brush import ImageArray
from .painting import paint_figure
from .people import DrawnIdentity, DrawnPose, Fabric
from .skeleton import place_skeleton, skeleton_keypoints

__all__ = ["DrawnFigures", "DrawnPair", "draw_figure"]

_IDENTITIES, _POSES = 3, 4  # first entries of the seed sequences


class DrawnPair(TypedDict):
    """One item of `DrawnFigures`: images are (H, W, 3), RGB, uint8."""

    source_image: ImageArray
    target_image: ImageArray
    source_keypoints: Keypoints
    target_keypoints: Keypoints


def draw_figure(
    identity: DrawnIdentity,
    pose: DrawnPose,
    size: tuple[int, int],
    *,
    arms: Sequence[tuple[Fabric, Fabric]] | None = None,
) -> tuple[ImageArray, Keypoints]:
    """Draw one person in one pose.

    Args:
        identity: The person.
        pose: How they stand and how they are framed.
        size: (height, width) of the image, pixels. Figures are composed at 256x176 and squeezed to this size, as
            DeepFashion's photos are squeezed into squares.
        arms: Colours of skin and sleeve of the right and the left arm; None for the person's own.

    Returns:
        The image, (height, width, 3), RGB, uint8, and the keypoints in it. The nose and eyes of people who look away,
        ears on the far side and joints outside the image are missing; joints under clothes or behind the body are not.
    """
    skeleton = place_skeleton(identity, pose)
    return paint_figure(identity, skeleton, size, arms), skeleton_keypoints(skeleton, size)


class DrawnFigures:
    """Pairs of images of one person in two poses, drawn when asked for.

    Every person has `poses_per_identity` images, and every ordered pair of two of them is an item with source and
    target; items are sorted by person. An item depends only on the arguments and its index. Sets with the same `seed`
    have no person and no pose in common if their ranges of people do not overlap.

    Args:
        num_identities: Number of people.
        poses_per_identity: Number of images of each, at least 2.
        size: (height, width) of the images, pixels.
        seed: Whole number >= 0.
        first_identity: Number of the first person; held-out people start where those for training end.

    Examples:
        >>> from drawn_figures import DrawnFigures
        >>> figures = DrawnFigures(num_identities=1000, poses_per_identity=6)
        >>> pair = figures[0]
        >>> pair["source_image"].shape, len(figures)
        ((128, 88, 3), 30000)
    """

    def __init__(
        self,
        num_identities: int,
        poses_per_identity: int = 6,
        size: tuple[int, int] = (128, 88),
        seed: int = 0,
        *,
        first_identity: int = 0,
    ) -> None:
        self.numbers: Sequence[int] = range(first_identity, first_identity + num_identities)
        self.poses_per_identity = poses_per_identity
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.numbers) * self.poses_per_identity * (self.poses_per_identity - 1)

    def __getitem__(self, index: int) -> DrawnPair:
        identity, source, target = self.locate(index)
        source_image, source_keypoints = self.draw(identity, source)
        target_image, target_keypoints = self.draw(identity, target)
        return {
            "source_image": source_image,
            "target_image": target_image,
            "source_keypoints": source_keypoints,
            "target_keypoints": target_keypoints,
        }

    def locate(self, index: int) -> tuple[int, int, int]:
        """Return which person an item shows, in which source pose and in which target pose."""
        index = range(len(self))[index]
        identity, pair = divmod(index, self.poses_per_identity * (self.poses_per_identity - 1))
        source, target = divmod(pair, self.poses_per_identity - 1)
        return identity, source, target + (target >= source)

    def select(self, identities: Sequence[int]) -> DrawnFigures:
        """Choose some of the people, e.g. those who wear rare clothes.

        Args:
            identities: Their positions in this set, in the order that they should have in the result.

        Returns:
            Figures of these people, with the same images and file names as here.

        Examples:
            >>> from drawn_figures import DrawnFigures
            >>> people = DrawnFigures(100)
            >>> clothes = [people.identity(number).clothes for number in range(100)]
            >>> dressed = people.select([number for number in range(100) if clothes[number].kind == "dress"])
        """
        figures = copy.copy(self)
        figures.numbers = [self.numbers[identity] for identity in identities]
        return figures

    def identity(self, identity: int) -> DrawnIdentity:
        """Make up the person at this position in the set."""
        return DrawnIdentity.from_seed(np.random.default_rng([_IDENTITIES, self.seed, self.numbers[identity]]))

    def pose(self, identity: int, pose: int) -> DrawnPose:
        """Make up one of the poses of the person at this position in the set."""
        return DrawnPose.from_seed(np.random.default_rng([_POSES, self.seed, self.numbers[identity], pose]))

    def draw(self, identity: int, pose: int) -> tuple[ImageArray, Keypoints]:
        """Draw one image of the person at this position in the set, as [`draw_figure`] returns it."""
        return draw_figure(self.identity(identity), self.pose(identity, pose), self.size)

    def write_folder(self, path: str | os.PathLike[str]) -> Path:
        """Write all images, and `pairs.jsonl` with one pair per line, as `diffusers_cfld.data.load_pairs` reads them.

        Args:
            path: Folder, which must not contain `images` yet.

        Returns:
            Path of `pairs.jsonl`.

        Raises:
            FileExistsError: The folder already has images.
        """
        folder = Path(path)
        (folder / "images").mkdir(parents=True)
        lines = []
        for identity, number in enumerate(self.numbers):
            images = []
            for pose in range(self.poses_per_identity):
                name = f"images/{number:06d}_{pose:02d}.png"
                image, keypoints = self.draw(identity, pose)
                PIL.Image.fromarray(image).save(folder / name)
                images.append((name, _to_json(keypoints)))
            for source, source_keypoints in images:
                for target, target_keypoints in images:
                    if target != source:
                        line: dict[str, Any] = {"source": source, "target": target}
                        line |= {"source_keypoints": source_keypoints, "target_keypoints": target_keypoints}
                        lines.append(json.dumps(line))
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "pairs.jsonl"


def _to_json(keypoints: Keypoints) -> dict[str, Any]:
    x, y = keypoints.xy.T.tolist()
    return {"keypoints_y": y, "keypoints_x": x, "size": list(keypoints.size)}
