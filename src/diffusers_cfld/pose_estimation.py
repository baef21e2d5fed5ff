"""Find poses in images: one small interface, and two estimators that implement it.

Anything that takes an image and returns a list of [`Keypoints`] is a [`PoseEstimator`]. If you set one as
`pipe.pose_estimator`, the pipeline accepts images as poses.
"""

from .pose.estimation import PoseEstimator as PoseEstimator
from .pose.estimation import RTMPoseEstimator as RTMPoseEstimator
from .pose.estimation import ViTPoseEstimator as ViTPoseEstimator
from .pose.estimation import estimate_pose as estimate_pose
