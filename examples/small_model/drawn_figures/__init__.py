"""Drawn people in clothes, in pairs of poses, with exact keypoints: data for examples without photographs."""

from .figures import DrawnFigures as DrawnFigures
from .figures import draw_figure as draw_figure
from .parts import ARMS as ARMS
from .parts import PARTS as PARTS
from .parts import PATTERN_ACCENTS as PATTERN_ACCENTS
from .parts import draw_arms as draw_arms
from .parts import draw_parts as draw_parts
from .people import DrawnIdentity as DrawnIdentity
from .people import DrawnPose as DrawnPose
from .people import color_distance as color_distance
from .skeleton import figure_keypoints as figure_keypoints

__all__ = [
    "ARMS",
    "PARTS",
    "PATTERN_ACCENTS",
    "DrawnFigures",
    "DrawnIdentity",
    "DrawnPose",
    "color_distance",
    "draw_arms",
    "draw_figure",
    "draw_parts",
    "figure_keypoints",
]
