"""One pose in the forms that tests read it from."""

import numpy as np

STANDING_YX = np.array(
    [
        [26, 88], [50, 88], [52, 66], [88, 58], [118, 52], [52, 110], [90, 118], [120, 124], [118, 74],
        [170, 72], [222, 70], [118, 102], [170, 104], [224, 106], [21, 82], [21, 94], [25, 74], [-1, -1],
    ]
)  # fmt: skip
"""Somebody standing, the left ear missing; DeepFashion's columns."""

ROW = f"fashionWOMEN_1front.jpg:{STANDING_YX[:, 0].tolist()}:{STANDING_YX[:, 1].tolist()}"
"""The same as a line of DeepFashion's CSV files."""


def openpose_numbers(xy=STANDING_YX[:, ::-1], confidence=0.75):
    """OpenPose's flat list of triples; missing joints are zeros."""
    rows = np.column_stack([xy, np.full(len(xy), confidence)]).astype(float)
    rows[(xy == -1).any(axis=1)] = 0
    return rows.ravel().tolist()
