"""Drawn figures: clothed people in any number, in pairs of poses, with exact keypoints.

They stand in for photos where none can be had: to train and test a small pose-transfer model, to try a script, to
fill a documentation page. Everything follows from whole-number seeds, so nothing needs to be stored or downloaded,
and every process draws the same pictures. They are drawings and not photos: nobody is depicted.
"""

from __future__ import annotations

import copy
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from diffusers_cfld import Keypoints
from diffusers_cfld.io_utils import write_file

from .brush import Picture
from .painting import paint_figure
from .people import DrawnIdentity, DrawnPose, Fabric
from .skeleton import figure_keypoints, place_skeleton, skeleton_keypoints

__all__ = ["DrawnFigures", "DrawnIdentity", "DrawnPair", "DrawnPose", "draw_figure", "figure_keypoints"]

# Changes when the same seeds give other pictures; a folder is only continued with the drawings it was begun with.
_DRAWING_VERSION = 5

_IDENTITIES, _POSES = 3, 4  # first entries of the seed sequences
_SETTINGS_FILE, _PAIRS_FILE, _IMAGE_FOLDER = "drawn_figures.json", "pairs.jsonl", "images"


class DrawnPair(TypedDict):
    """One item of `DrawnFigures`: pictures are (H, W, 3), RGB, uint8."""

    source_image: Picture
    target_image: Picture
    source_keypoints: Keypoints
    target_keypoints: Keypoints


def draw_figure(
    identity: DrawnIdentity,
    pose: DrawnPose,
    size: tuple[int, int],
    *,
    arms: Sequence[tuple[Fabric, Fabric]] | None = None,
) -> tuple[Picture, Keypoints]:
    """Draw one person in one pose.

    Args:
        identity: Who.
        pose: How they stand and how they are framed.
        size: (height, width) of the picture, pixels. Figures are composed in a frame of 256x176 that is squeezed into
            it, as the field squeezes its photos into squares.
        arms: Skin and sleeve of the right and of the left arm, where they are not to be the identity's own.

    Returns:
        The picture, (height, width, 3), RGB, uint8, and the keypoints in it. Noses and eyes of people who look away,
        ears on the far side and joints outside the frame are missing; joints under clothes or behind the body are not.

    Raises:
        ValueError: `size` is smaller than 8 or larger than 2048 pixels.
        TypeError: `size` is not a pair of whole numbers.
    """
    size = check_picture_size(size)
    skeleton = place_skeleton(identity, pose)
    return paint_figure(identity, skeleton, size, arms), skeleton_keypoints(skeleton, size)


class DrawnFigures:
    """Pairs of pictures of one person in two poses, drawn when asked for.

    Every person has `poses_per_identity` pictures, and every ordered pair of two different ones is an item: source and
    target, identity by identity. An item depends on the settings and its index only, so workers may take them in any
    order. Sets with equal `seed` whose ranges of identities do not overlap have no person and no pose in common.

    Args:
        num_identities: How many people, >= 1.
        poses_per_identity: Pictures of each, >= 2.
        size: (height, width) of the pictures, pixels.
        seed: Whole number >= 0.
        first_identity: Number of the first person, >= 0; held-out people start where those for training end.

    Raises:
        ValueError: A number is too small, or `size` is smaller than 8 or larger than 2048 pixels.
        TypeError: A number is not whole.

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
        self.num_identities = _check_count(num_identities, "num_identities", 1)
        self.poses_per_identity = _check_count(poses_per_identity, "poses_per_identity", 2)
        self.size = check_picture_size(size)
        self.seed = _check_count(seed, "seed", 0)
        self.first_identity = _check_count(first_identity, "first_identity", 0)
        self._numbers: Sequence[int] = range(self.first_identity, self.first_identity + self.num_identities)

    def __len__(self) -> int:
        return self.num_identities * self.poses_per_identity * (self.poses_per_identity - 1)

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

    def __iter__(self) -> Iterator[DrawnPair]:
        return (self[index] for index in range(len(self)))

    def locate(self, index: int) -> tuple[int, int, int]:
        """Tell which pictures an item consists of.

        Args:
            index: Of the item; negative ones count from the end.

        Returns:
            Identity in [0, num_identities), source and target pose in [0, poses_per_identity).

        Raises:
            IndexError: There is no such item.
        """
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"There are {length} pairs, got index {index}.")
        identity, pair = divmod(int(index) % length, self.poses_per_identity * (self.poses_per_identity - 1))
        source, target = divmod(pair, self.poses_per_identity - 1)
        return identity, source, target + (target >= source)

    def select(self, identities: Sequence[int]) -> DrawnFigures:
        """Take some of the people, e.g. those who wear what is rare, in an order of one's own.

        Args:
            identities: Each in [0, num_identities), none twice, at least one. They become 0, 1, ... of the result; the
                pictures of each stay what they are, and so do the names of the files.

        Returns:
            Figures of these people; `first_identity` is the least of their numbers.

        Raises:
            IndexError: There is no such person.
            ValueError: Nobody is selected, or somebody twice.

        Examples:
            >>> from drawn_figures import DrawnFigures
            >>> people = DrawnFigures(100)
            >>> clothes = [people.identity(number).clothes for number in range(100)]
            >>> dressed = people.select([number for number in range(100) if clothes[number].kind == "dress"])
        """
        numbers = [self._number(identity) for identity in identities]
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(
                f"`identities` must be at least one person, none of them twice, got {reprlib.repr(list(identities))}."
            )
        return self._take(numbers)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the pictures, as JSON can hold it; with the version of the drawing itself."""
        settings: dict[str, Any] = {
            "drawing_version": _DRAWING_VERSION,
            "num_identities": self.num_identities,
            "poses_per_identity": self.poses_per_identity,
            "size": list(self.size),
            "seed": self.seed,
            "first_identity": self.first_identity,
        }
        return settings | ({"numbers": list(self._numbers)} if self._is_selection else {})

    def identity(self, identity: int) -> DrawnIdentity:
        """Make up one of the people.

        Args:
            identity: In [0, num_identities).

        Returns:
            The person.

        Raises:
            IndexError: There is no such person.
        """
        number = self._number(identity)
        return DrawnIdentity.from_seed(np.random.default_rng([_IDENTITIES, self.seed, number]))

    def pose(self, identity: int, pose: int) -> DrawnPose:
        """Make up one of a person's poses.

        Args:
            identity: In [0, num_identities).
            pose: In [0, poses_per_identity).

        Returns:
            The pose.

        Raises:
            IndexError: There is no such person or pose.
        """
        number = self._number(identity)
        self._check_pose(pose)
        return DrawnPose.from_seed(np.random.default_rng([_POSES, self.seed, number, int(pose)]))

    def draw(self, identity: int, pose: int) -> tuple[Picture, Keypoints]:
        """Draw one picture.

        Args:
            identity: In [0, num_identities).
            pose: In [0, poses_per_identity).

        Returns:
            The picture, (height, width, 3), RGB, uint8, and its keypoints.

        Raises:
            IndexError: There is no such person or pose.
        """
        return draw_figure(self.identity(identity), self.pose(identity, pose), self.size)

    def image_name(self, identity: int, pose: int) -> str:
        """Name a picture's file as [`write_folder`] does.

        Args:
            identity: In [0, num_identities).
            pose: In [0, poses_per_identity).

        Returns:
            The file, relative to the folder.

        Raises:
            IndexError: There is no such person or pose.
        """
        number = self._number(identity)
        self._check_pose(pose)
        return f"{_IMAGE_FOLDER}/{number:06d}_{pose:02d}.png"

    def write_folder(self, path: str | os.PathLike[str]) -> Path:
        """Write all pictures, and `pairs.jsonl` with one pair a line, for tools that read files.

        A line has `source` and `target` (files relative to the folder) and `source_keypoints` and `target_keypoints`
        (dicts that `Keypoints.from_any` reads). Every file appears complete or not at all, `pairs.jsonl` last; after
        an interruption the same call goes on where it stopped. One process at a time may write to a folder.

        Args:
            path: Folder; made if it does not exist.

        Returns:
            Path of `pairs.jsonl`.

        Raises:
            ValueError: The folder was begun with other settings, or holds a `pairs.jsonl` or `images` from elsewhere.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._claim(folder)
        (folder / _IMAGE_FOLDER).mkdir(exist_ok=True)
        lines = []
        for identity in range(self.num_identities):
            person = self.identity(identity)
            pictures = []
            for pose in range(self.poses_per_identity):
                stance = self.pose(identity, pose)
                name = self.image_name(identity, pose)
                if not (folder / name).exists():
                    write_file(folder / name, _encode(draw_figure(person, stance, self.size)[0]))
                pictures.append((name, _keypoints_to_dict(figure_keypoints(person, stance, self.size))))
            for source_name, source in pictures:
                for target_name, target in pictures:
                    if target_name != source_name:
                        line = {"source": source_name, "target": target_name}
                        lines.append(json.dumps({**line, "source_keypoints": source, "target_keypoints": target}))
        write_file(folder / _PAIRS_FILE, ("\n".join(lines) + "\n").encode())
        return folder / _PAIRS_FILE

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> DrawnFigures:
        """The figures of a folder, e.g. for what is known of the people in its pictures.

        Args:
            path: Folder that `write_folder` wrote.

        Returns:
            Figures with the folder's settings.

        Raises:
            FileNotFoundError: `write_folder` did not write this folder.
            ValueError: Another version of this package wrote it, whose figures look different.
        """
        file = Path(path) / _SETTINGS_FILE
        if not file.exists():
            raise FileNotFoundError(
                f"{str(path)!r} must be a folder that `DrawnFigures.write_folder` wrote; it has no {_SETTINGS_FILE}."
            )
        settings = json.loads(file.read_text())
        version = settings.pop("drawing_version", None)
        if version != _DRAWING_VERSION:
            raise ValueError(
                f"{str(path)!r} holds figures of drawing version {version}, but version {_DRAWING_VERSION} is drawn "
                "now: delete it and write it again."
            )
        numbers = settings.pop("numbers", None)
        figures = cls(**{**settings, "size": tuple(settings["size"])})
        return figures if numbers is None else figures._take(numbers)

    def _take(self, numbers: Sequence[int]) -> DrawnFigures:
        figures = copy.copy(self)
        figures._numbers = numbers
        figures.num_identities, figures.first_identity = len(numbers), min(numbers)
        return figures

    @property
    def _is_selection(self) -> bool:
        return not isinstance(self._numbers, range)

    def _number(self, identity: int) -> int:
        if not 0 <= identity < self.num_identities:
            raise IndexError(f"There are {self.num_identities} people, got {identity}.")
        return self._numbers[int(identity)]

    def _check_pose(self, pose: int) -> None:
        if not 0 <= pose < self.poses_per_identity:
            raise IndexError(f"Each person has {self.poses_per_identity} poses, got {pose}.")

    def _claim(self, folder: Path) -> None:
        """Check that the folder is new or was begun with these settings, and note them in it."""
        settings = self.settings
        file = folder / _SETTINGS_FILE
        if file.exists():
            found = json.loads(file.read_text())
            names = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
            if names:
                changes = [
                    f"{name} {reprlib.repr(found.get(name))}, not {reprlib.repr(settings.get(name))}" for name in names
                ]
                raise ValueError(
                    f"{str(folder)!r} was begun with other settings ({'; '.join(changes)}): "
                    "use those again, or, if the drawing version is another one, another folder."
                )
            return
        foreign = [name for name in (_PAIRS_FILE, _IMAGE_FOLDER) if (folder / name).exists()]
        if foreign:
            raise ValueError(f"{str(folder)!r} holds {foreign[0]!r}, which was not written here: use another folder.")
        write_file(file, json.dumps(settings, indent=2).encode() + b"\n")

    def __repr__(self) -> str:
        numbers = f", numbers={reprlib.repr(self._numbers)}" if self._is_selection else ""
        return (
            f"DrawnFigures(num_identities={self.num_identities}, poses_per_identity={self.poses_per_identity}, "
            f"size={self.size}, seed={self.seed}, first_identity={self.first_identity}{numbers})"
        )


def _keypoints_to_dict(keypoints: Keypoints) -> dict[str, Any]:
    x, y = keypoints.xy.T.tolist()
    return {"keypoints_y": y, "keypoints_x": x, "size": list(keypoints.size)}


def _encode(picture: Picture) -> bytes:
    import cv2

    done, data = cv2.imencode(".png", picture[:, :, ::-1])
    if not done:
        raise RuntimeError("OpenCV could not encode a PNG file.")
    return bytes(data)


def _check_count(value: object, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    return int(value)


def check_picture_size(size: object) -> tuple[int, int]:
    """Check the size of a picture to draw.

    Args:
        size: (height, width), pixels.

    Returns:
        It, as two int.

    Raises:
        ValueError: It is smaller than 8 or larger than 2048 pixels.
        TypeError: It is not a pair of whole numbers.
    """
    pair = tuple(size) if isinstance(size, (tuple, list, np.ndarray)) else ()
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in pair):
        raise TypeError(f"`size` must be a pair of whole numbers (height, width), got {size!r}.")
    if not all(8 <= length <= 2048 for length in pair):
        raise ValueError(f"`size` must be (height, width), each from 8 to 2048 pixels, got {pair}.")
    return int(pair[0]), int(pair[1])
