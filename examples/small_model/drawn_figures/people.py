"""Who is drawn and how they stand: identities (body, hair, clothes) and poses, each made from one seed.

Lengths are fractions of the person's stature unless noted otherwise. The body's own axes are x to its left, y down and
z forward; angles are degrees.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

__all__ = [
    "ArmPose",
    "Body",
    "Clothes",
    "Color",
    "DrawnIdentity",
    "DrawnPose",
    "Fabric",
    "Hair",
    "LegPose",
    "Vector",
    "color_distance",
]

Color: TypeAlias = tuple[int, int, int]
Vector: TypeAlias = tuple[float, float, float]
Pattern = Literal["plain", "horizontal", "vertical", "diagonal", "dots", "checks", "windows", "block"]
Seed: TypeAlias = "int | np.random.Generator"

# First entries of the seed sequences, so that identity 3 and pose 3 share no random numbers.
_IDENTITY_STREAM, _POSE_STREAM = 1, 2

_SKIN_TONES = (
    (252, 226, 205),
    (243, 205, 174),
    (226, 178, 140),
    (198, 145, 104),
    (156, 106, 72),
    (112, 74, 52),
    (74, 48, 37),
)
_HAIR_COLORS = (
    (22, 18, 18),
    (48, 32, 24),
    (92, 58, 34),
    (128, 66, 34),
    (176, 124, 60),
    (222, 186, 112),
    (150, 150, 152),
)
_DENIM_COLORS = ((38, 52, 92), (62, 88, 138), (112, 142, 184))


@dataclass(frozen=True, slots=True)
class Fabric:
    """The material of a piece of clothing.

    Args:
        color: RGB of the ground, 0 to 255.
        accent: RGB of the pattern.
        pattern: Plain; stripes that run across, along or diagonally; dots; checks; a grid of thin lines; or a block
            of the accent colour below the chest.
        period: Length after which the pattern repeats.
    """

    color: Color
    accent: Color
    pattern: Pattern = "plain"
    period: float = 0.12


@dataclass(frozen=True, slots=True)
class Body:
    """Proportions and skin.

    Args:
        skin: RGB, 0 to 255.
        shoulder: From the neck to a shoulder joint.
        waist: Half the breadth of the waist.
        hip: From the middle of the hips to a hip joint.
        breadth: Half the breadth of the pelvis.
        depth: Half the depth of the chest, from front to back.
        limb: Factor for the thickness of arms and legs.
        head: Half the height of the head.
        spine: From the middle of the hips to the neck.
        leg: From a hip to the ankle.
        arm: From a shoulder to the wrist.
    """

    skin: Color
    shoulder: float
    waist: float
    hip: float
    breadth: float
    depth: float
    limb: float
    head: float
    spine: float
    leg: float
    arm: float


@dataclass(frozen=True, slots=True)
class Hair:
    """Hair or headgear.

    Args:
        style: How it is worn.
        color: RGB of the hair, 0 to 255.
        length: Where long hair and ponytails end, below the middle of the head.
        fringe: How far the fringe comes down the forehead, 0 to 1.
        hat: RGB of the cap or beanie.
    """

    style: Literal["short", "bob", "long", "bun", "ponytail", "afro", "bald", "cap", "beanie"]
    color: Color
    length: float
    fringe: float
    hat: Color


@dataclass(frozen=True, slots=True)
class Clothes:
    """One outfit.

    Args:
        upper: Fabric of the upper garment, or of the whole dress.
        kind: Cut of the upper garment. A dress has no lower garment; a jacket is worn open over `inner`.
        sleeve: Where sleeves end: 0 at the shoulder (none), 1 at the elbow, 2 at the wrist.
        sleeve_width: How far sleeves stand off the arm at their end.
        ease: How far the garment stands off the body.
        hem: Where the upper garment ends: 0 at the neck, 1 at the hips, 2 at the knees, 3 at the ankles.
        neckline: Shape of the neckline in front; the back is always cut high.
        print_shape: Figure printed on the chest, in the accent colour.
        inner: RGB of what is worn under an open jacket, 0 to 255.
        lower: Fabric of the lower garment.
        lower_kind: Trousers, or a skirt that spans both legs.
        lower_hem: Where the lower garment ends, in the units of `hem`.
        lower_width: How far trouser legs or the skirt's hem stand off the legs.
        tucked: Whether the upper garment is worn inside the lower one.
        belt: RGB of the belt; None without one.
        shoe: RGB of the shoes.
        shoe_kind: Shape of the shoes.
    """

    upper: Fabric
    kind: Literal["top", "shirt", "jacket", "dress"]
    sleeve: float
    sleeve_width: float
    ease: float
    hem: float
    neckline: Literal["round", "v", "boat", "turtle", "collar"]
    print_shape: Literal["none", "disc", "diamond", "bar", "star"]
    inner: Color
    lower: Fabric
    lower_kind: Literal["trousers", "skirt"]
    lower_hem: float
    lower_width: float
    tucked: bool
    belt: Color | None
    shoe: Color
    shoe_kind: Literal["sneaker", "boot", "sandal"]


@dataclass(frozen=True, slots=True)
class DrawnIdentity:
    """One drawn person: everything that stays when the pose changes.

    Args:
        body: Proportions and skin.
        hair: Hair or headgear.
        clothes: The outfit.
        background: RGB at the top and at the bottom of the image, 0 to 255, with a gradient between.
        floor: Whether there is a floor, a little darker than the wall.
    """

    body: Body
    hair: Hair
    clothes: Clothes
    background: tuple[Color, Color]
    floor: bool

    @classmethod
    def from_seed(cls, seed: Seed) -> DrawnIdentity:
        """Make up a person.

        The accent of checks is never darker than their ground. Otherwise only the positions of the squares on the body
        would show which is which.

        Args:
            seed: Whole number >= 0, or a generator to draw from. Equal numbers give equal people.

        Returns:
            The person.
        """
        rng = _generator(seed, _IDENTITY_STREAM)
        light = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.16), rng.uniform(0.84, 0.98))
        top = np.array(light)
        background = (_rgb(top), _rgb(top * rng.uniform(0.84, 1.0)))
        skin = _between(_SKIN_TONES, rng)
        clothes = _dress(rng, skin, background[0])
        return cls(_build(rng, skin), _style_hair(rng, skin), clothes, background, bool(rng.random() < 0.5))


@dataclass(frozen=True, slots=True)
class ArmPose:
    """The position of a hand; the elbow follows.

    Args:
        anchor: What the position is measured from: this side's shoulder or hip joint, or the middle of the head.
        offset: The wrist relative to it: (outward, down, forward).
        elbow: Direction in which the elbow points: (outward, down, forward).
    """

    anchor: Literal["shoulder", "hip", "head"]
    offset: Vector
    elbow: Vector


@dataclass(frozen=True, slots=True)
class LegPose:
    """Angles of one leg, degrees.

    Args:
        spread: How far the thigh points outward.
        lift: How far the thigh points forward.
        knee: How far the knee is bent, >= 0.
        toe: How far the foot points outward.
    """

    spread: float
    lift: float
    knee: float
    toe: float


@dataclass(frozen=True, slots=True)
class DrawnPose:
    """How a person stands and how the image is framed; fits any `DrawnIdentity`.

    Args:
        azimuth: Where the camera stands, degrees: 0 in front, 90 so that the person faces the right of the image,
            180 behind.
        camera: How far the camera looks down, degrees.
        lean: How far the upper body leans to the person's left, degrees.
        bend: How far the upper body bends forward, degrees.
        twist: How far the shoulders are turned against the hips, degrees, in the direction of `azimuth`.
        shrug: How far the line of the shoulders drops to the left, degrees.
        head: The head's turn (in the direction of `azimuth`), nod (forward) and tilt (to the left), degrees.
        right_arm: The person's own right arm.
        left_arm: The person's own left arm.
        right_leg: The person's own right leg.
        left_leg: The person's own left leg.
        stature: Height of the upright person in pixels of an image 256 high; smaller if the pose would not fit.
        crop: Fraction of the stature, from the top of the head, at which the image ends; None shows the whole person.
        place: Where in the free space the person stands: (horizontal in [-1, 1], vertical in [0, 1]).
    """

    azimuth: float
    camera: float
    lean: float
    bend: float
    twist: float
    shrug: float
    head: Vector
    right_arm: ArmPose
    left_arm: ArmPose
    right_leg: LegPose
    left_leg: LegPose
    stature: float
    crop: float | None
    place: tuple[float, float]

    @classmethod
    def from_seed(cls, seed: Seed) -> DrawnPose:
        """Make up a pose.

        Args:
            seed: Whole number >= 0, or a generator to draw from. Equal numbers give equal poses.

        Returns:
            The pose.
        """
        rng = _generator(seed, _POSE_STREAM)
        side = 1.0 if rng.random() < 0.5 else -1.0
        view = rng.choice(5, p=(0.42, 0.24, 0.07, 0.19, 0.08))
        ranges = ((0, 14), (22, 58), (70, 95), (162, 180), (120, 158))
        azimuth = side * rng.uniform(*ranges[view])
        right_arm, left_arm = _move_arms(rng)
        right_leg, left_leg = _move_legs(rng)
        # A front view that looks away would hide the face too often.
        turn = float(np.clip(rng.normal(0, 16), -40, 40))
        framing = rng.random()
        crop = None
        if framing > 0.82:
            crop = rng.uniform(0.66, 0.74) if framing > 0.88 else rng.uniform(0.54, 0.61)
        return cls(
            azimuth=azimuth,
            camera=rng.uniform(3, 9),
            lean=float(np.clip(rng.normal(0, 3.5), -9, 9)),
            bend=float(np.clip(rng.normal(1, 3), -6, 10)),
            twist=float(np.clip(rng.normal(0, 7), -16, 16)),
            shrug=float(np.clip(rng.normal(0, 3), -8, 8)),
            head=(turn, rng.uniform(-6, 8), float(np.clip(rng.normal(0, 5), -13, 13))),
            right_arm=right_arm,
            left_arm=left_arm,
            right_leg=right_leg,
            left_leg=left_leg,
            stature=rng.uniform(214, 246),
            crop=crop,
            place=(rng.uniform(-1, 1), rng.uniform(0.25, 0.85)),
        )

    @property
    def view(self) -> Literal["front", "three-quarter", "profile", "back"]:
        """Where the camera stands; `three-quarter` is obliquely in front or obliquely behind."""
        angle = abs((self.azimuth + 180) % 360 - 180)
        if angle < 20:
            return "front"
        if angle > 160:
            return "back"
        return "profile" if 65 <= angle <= 115 else "three-quarter"


def _generator(seed: Seed, stream: int) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng([stream, seed])


# Identities -----------------------------------------------------------------------------------------------------


def _build(rng: np.random.Generator, skin: Color) -> Body:
    # One number from slim and narrow-hipped to broad; the others vary around it.
    weight = rng.normal(0, 1)
    curve = rng.uniform(-1, 1)  # positive: wide hips and a narrow waist
    leg = rng.uniform(0.445, 0.475)
    return Body(
        skin=skin,
        shoulder=0.104 + 0.004 * weight - 0.007 * curve + rng.uniform(-0.003, 0.003),
        waist=float(np.clip(0.076 + 0.008 * weight - 0.008 * curve, 0.058, 0.1)),
        hip=0.052 + 0.003 * curve,
        breadth=float(np.clip(0.09 + 0.006 * weight + 0.007 * curve, 0.078, 0.112)),
        depth=float(np.clip(0.066 + 0.005 * weight, 0.055, 0.08)),
        limb=float(np.clip(1.0 + 0.1 * weight, 0.82, 1.25)),
        head=rng.uniform(0.068, 0.077),
        spine=0.775 - leg,
        leg=leg,
        arm=rng.uniform(0.315, 0.34),
    )


def _style_hair(rng: np.random.Generator, skin: Color) -> Hair:
    styles: tuple[Literal["short", "bob", "long", "bun", "ponytail", "afro", "bald", "cap", "beanie"], ...]
    styles = ("short", "bob", "long", "bun", "ponytail", "afro", "bald", "cap", "beanie")
    style = styles[rng.choice(len(styles), p=(0.24, 0.15, 0.2, 0.09, 0.1, 0.06, 0.05, 0.06, 0.05))]
    color = _between(_HAIR_COLORS, rng)
    if rng.random() < 0.07:
        color = _hsv(rng.random(), 0.7, 0.75)
    if color_distance(color, skin) < 90:
        color = _rgb(np.array(color) / 255 * 0.45)
    hat = _choose_color(rng, (color, skin), 120)
    return Hair(style, color, rng.uniform(0.14, 0.3), rng.uniform(0, 1), hat)


def _dress(rng: np.random.Generator, skin: Color, wall: Color) -> Clothes:
    kinds: tuple[Literal["top", "shirt", "jacket", "dress"], ...] = ("top", "shirt", "jacket", "dress")
    kind = kinds[rng.choice(4, p=(0.47, 0.13, 0.18, 0.22))]
    upper_color = _choose_color(rng, (wall, skin), 120)
    upper = _weave(rng, upper_color, skin, 0.45 if kind != "jacket" else 0.75, block=kind in ("top", "dress"))
    lower_color = _choose_color(rng, (wall, skin, upper_color), 85, denim=True)
    lower = _weave(rng, lower_color, skin, 0.72, block=False)
    sleeves = (0.0, 0.55, 1.0, 1.5, 1.95)
    weights = {
        "top": (0.16, 0.34, 0.05, 0.13, 0.32),
        "shirt": (0.0, 0.4, 0.0, 0.15, 0.45),
        "jacket": (0.08, 0.0, 0.0, 0.17, 0.75),
        "dress": (0.3, 0.27, 0.05, 0.13, 0.25),
    }[kind]
    sleeve = sleeves[rng.choice(5, p=weights)]
    necklines: tuple[Literal["round", "v", "boat", "turtle"], ...] = ("round", "v", "boat", "turtle")
    neckline: Literal["round", "v", "boat", "turtle", "collar"] = necklines[rng.choice(4, p=(0.42, 0.28, 0.15, 0.15))]
    if kind == "shirt":
        neckline = "collar"
    hem = rng.uniform(0.98, 1.14) if rng.random() < 0.7 else rng.uniform(0.8, 1.35)
    if kind == "jacket":
        hem = rng.choice([rng.uniform(0.95, 1.15), rng.uniform(1.3, 1.65), rng.uniform(1.8, 2.3)], p=(0.5, 0.3, 0.2))
    elif kind == "dress":
        hem = rng.choice([rng.uniform(1.55, 1.85), rng.uniform(1.9, 2.2), rng.uniform(2.5, 2.85)], p=(0.5, 0.3, 0.2))
    shapes: tuple[Literal["disc", "diamond", "bar", "star"], ...] = ("disc", "diamond", "bar", "star")
    has_print = kind == "top" and upper.pattern == "plain" and rng.random() < 0.6
    lower_kind: Literal["trousers", "skirt"] = "skirt" if rng.random() < 0.3 else "trousers"
    if lower_kind == "skirt":
        ends = (rng.uniform(1.5, 1.8), rng.uniform(1.9, 2.2), rng.uniform(2.5, 2.85))
        lower_hem = ends[rng.choice(3, p=(0.5, 0.25, 0.25))]
        lower_width = rng.uniform(0.005, 0.06)
    else:
        ends = (rng.uniform(1.45, 1.75), rng.uniform(2.3, 2.6), 2.96)
        lower_hem = ends[rng.choice(3, p=(0.27, 0.1, 0.63))]
        lower_width = rng.choice([rng.uniform(0.004, 0.008), rng.uniform(0.012, 0.02), rng.uniform(0.03, 0.045)])
    shoes: tuple[Literal["sneaker", "boot", "sandal"], ...] = ("sneaker", "boot", "sandal")
    shoe_kind = shoes[rng.choice(3, p=(0.55, 0.3, 0.15))]
    belt = _choose_color(rng, (upper_color, lower_color), 90) if rng.random() < 0.3 else None
    return Clothes(
        upper=upper,
        kind=kind,
        sleeve=sleeve,
        sleeve_width=rng.choice([rng.uniform(0.003, 0.008), rng.uniform(0.01, 0.024)], p=(0.7, 0.3)),
        ease=rng.uniform(0.003, 0.018),
        hem=float(hem),
        neckline=neckline,
        print_shape=shapes[rng.choice(4)] if has_print else "none",
        inner=_choose_color(rng, (upper_color, lower_color, skin), 110),
        lower=lower,
        lower_kind=lower_kind,
        lower_hem=float(lower_hem),
        lower_width=float(lower_width),
        tucked=bool(kind in ("top", "shirt") and hem < 1.2 and rng.random() < 0.35),
        belt=belt,
        shoe=_choose_color(rng, (wall, lower_color), 70),
        shoe_kind=shoe_kind,
    )


def _weave(rng: np.random.Generator, color: Color, skin: Color, plain: float, block: bool) -> Fabric:
    patterns: list[Pattern] = ["horizontal", "vertical", "diagonal", "dots", "checks", "windows", "block"]
    weights = np.array([0.26, 0.16, 0.08, 0.16, 0.14, 0.08, 0.12 if block else 0.0])
    # Stripes that look like skin would hide where the sleeve ends.
    accent = _choose_color(rng, (color, skin), 190)
    index = rng.choice(len(patterns), p=weights / weights.sum())
    pattern: Pattern = "plain" if rng.random() < plain else patterns[index]
    if pattern == "checks" and sum(accent) < sum(color):
        color, accent = accent, color
    return Fabric(color, accent, pattern, rng.uniform(0.15, 0.17))


def _choose_color(rng: np.random.Generator, others: tuple[Color, ...], contrast: float, denim: bool = False) -> Color:
    """Draw a colour of cloth that differs from `others`, the best one of at most 20."""
    best, best_contrast = (0, 0, 0), -1.0
    for _ in range(20):
        kind = rng.random()
        if denim and kind < 0.3:
            color = _between(_DENIM_COLORS, rng)
        elif kind < 0.42:
            value = (rng.uniform(0.08, 0.24), rng.uniform(0.3, 0.7), rng.uniform(0.88, 1.0))[rng.choice(3)]
            color = _hsv(rng.random(), rng.uniform(0, 0.16), value)
        else:
            color = _hsv(rng.random(), rng.uniform(0.45, 1), rng.uniform(0.38, 1))
        least = min(color_distance(color, other) for other in others)
        if least > best_contrast:
            best, best_contrast = color, least
        if least >= contrast:
            break
    return best


def color_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Estimate how different two colours look.

    Args:
        first: RGB, 0 to 255.
        second: RGB, 0 to 255.

    Returns:
        The distance in RGB with the weights of https://www.compuphase.com/cmetric.htm; black and white are 765 apart.
    """
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    mean = (first[0] + second[0]) / 2
    return float(((2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2) ** 0.5)


def _between(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    position = rng.uniform(0, len(colors) - 1)
    index = int(position)
    low, high = np.array(colors[index]), np.array(colors[min(index + 1, len(colors) - 1)])
    return _rgb((low + (position - index) * (high - low) + rng.uniform(-6, 6, 3)) / 255)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return _rgb(np.array(colorsys.hsv_to_rgb(hue, saturation, value)))


def _rgb(fractions: np.ndarray) -> Color:
    red, green, blue = np.rint(fractions * 255).clip(0, 255).astype(int).tolist()
    return red, green, blue


# Poses ----------------------------------------------------------------------------------------------------------

# (anchor, least offset, greatest offset, elbow, weight); offsets and elbow are (outward, down, forward).
_ARMS: dict[str, tuple[Literal["shoulder", "hip", "head"], Vector, Vector, Vector, float]] = {
    "down": ("shoulder", (0.02, 0.29, -0.04), (0.09, 0.33, 0.06), (0.5, 0.0, -1.0), 0.28),
    "apart": ("shoulder", (0.1, 0.2, -0.03), (0.2, 0.3, 0.08), (0.6, 0.2, -0.8), 0.12),
    "sideways": ("shoulder", (0.24, -0.06, 0.0), (0.31, 0.16, 0.08), (0.2, 0.8, -0.6), 0.05),
    "akimbo": ("hip", (0.045, -0.11, -0.01), (0.06, -0.06, 0.04), (1.0, 0.0, -0.5), 0.13),
    "pocket": ("hip", (0.03, -0.02, 0.0), (0.05, 0.03, 0.05), (1.0, 0.0, -0.8), 0.09),
    "raised": ("shoulder", (0.03, -0.32, 0.0), (0.16, -0.22, 0.07), (1.0, 0.1, -0.2), 0.06),
    "waving": ("shoulder", (0.12, -0.16, 0.02), (0.2, -0.08, 0.1), (0.8, 1.0, -0.2), 0.06),
    "to the head": ("head", (0.05, -0.07, -0.02), (0.08, 0.02, 0.04), (1.0, 0.1, 0.2), 0.05),
    "to the chin": ("head", (0.0, 0.085, 0.08), (0.04, 0.12, 0.1), (0.4, 1.0, 0.1), 0.03),
    "forward": ("shoulder", (0.0, 0.05, 0.18), (0.08, 0.2, 0.28), (0.3, 0.8, -0.6), 0.05),
    "carrying": ("shoulder", (0.0, 0.12, 0.13), (0.06, 0.2, 0.18), (0.4, 0.5, -1.0), 0.05),
    "behind": ("hip", (-0.05, -0.08, -0.12), (-0.02, 0.0, -0.1), (1.0, 0.0, -0.7), 0.03),
}
_BOTH_ARMS: dict[str, tuple[Literal["shoulder", "hip", "head"], Vector, Vector, Vector]] = {
    "crossed": ("shoulder", (-0.18, 0.16, 0.11), (-0.14, 0.2, 0.13), (1.0, 0.7, -0.2)),
    "clasped": ("hip", (-0.05, -0.06, 0.11), (-0.035, 0.03, 0.13), (1.0, 0.1, -0.5)),
}


def _move_arms(rng: np.random.Generator) -> tuple[ArmPose, ArmPose]:
    kind = rng.random()
    if kind < 0.15:
        names = list(_BOTH_ARMS)
        anchor, low, high, elbow = _BOTH_ARMS[names[rng.choice(len(names))]]
        # The second forearm lies a little lower and farther out than the first.
        first, second = (ArmPose(anchor, _within(rng, low, high), elbow) for _ in range(2))
        outward, down, forward = first.offset
        second = replace(second, offset=(outward, down + 0.025, forward + 0.02))
        return (first, second) if rng.random() < 0.5 else (second, first)
    names = list(_ARMS)
    weights = np.array([entry[-1] for entry in _ARMS.values()])
    indices = rng.choice(len(names), size=2, p=weights / weights.sum())
    if kind < 0.5:
        indices[1] = indices[0]
    arms = []
    for index in indices:
        anchor, low, high, elbow, _ = _ARMS[names[index]]
        arms.append(ArmPose(anchor, _within(rng, low, high), elbow))
    return arms[0], arms[1]


def _move_legs(rng: np.random.Generator) -> tuple[LegPose, LegPose]:
    def leg(spread: tuple[float, float], lift: tuple[float, float], knee: tuple[float, float]) -> LegPose:
        return LegPose(rng.uniform(*spread), rng.uniform(*lift), rng.uniform(*knee), rng.uniform(4, 24))

    kind = rng.choice(7, p=(0.32, 0.14, 0.18, 0.22, 0.06, 0.04, 0.04))
    if kind == 0:  # standing
        legs = leg((0, 6), (-2, 3), (0, 4)), leg((0, 6), (-2, 3), (0, 4))
    elif kind == 1:  # astride
        legs = leg((8, 17), (-2, 4), (0, 6)), leg((8, 17), (-2, 4), (0, 6))
    elif kind == 2:  # one leg at ease
        legs = leg((-1, 4), (-2, 2), (0, 3)), leg((4, 14), (8, 20), (14, 32))
    elif kind == 3:  # walking
        legs = leg((-3, 3), (12, 26), (2, 12)), leg((-3, 3), (-20, -6), (6, 28))
    elif kind == 4:  # ankles crossed
        legs = leg((-7, -4), (0, 3), (0, 3)), leg((-8, -4), (4, 9), (4, 9))
    elif kind == 5:  # about to sit
        legs = leg((2, 10), (28, 45), (42, 64)), leg((2, 10), (28, 45), (42, 64))
    else:  # one knee up
        legs = leg((0, 4), (-2, 2), (0, 4)), leg((0, 12), (40, 70), (60, 95))
    return legs if rng.random() < 0.5 else (legs[1], legs[0])


def _within(rng: np.random.Generator, low: Vector, high: Vector) -> Vector:
    x, y, z = rng.uniform(low, high).tolist()
    return x, y, z
