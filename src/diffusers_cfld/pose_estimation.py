"""Poses from pictures: one small interface, and two estimators behind it.

Anything that takes a picture and returns [`Keypoints`] is a [`PoseEstimator`]; set one as `pipe.pose_estimator`, and
pictures are accepted as poses.
"""

from .pose.estimation import PoseEstimator as PoseEstimator
from .pose.estimation import estimate_pose as estimate_pose
from .pose.rtmpose import RTMPoseEstimator as RTMPoseEstimator
from .pose.vitpose import ViTPoseEstimator as ViTPoseEstimator

__all__ = ["PoseEstimator", "RTMPoseEstimator", "ViTPoseEstimator", "estimate_pose"]
