"""Skeletons as other tools draw them, from the facts of these tools: tables of colours, widths, blending, order."""

import colorsys

import cv2
import numpy as np

from diffusers_cfld.pose.skeleton import JOINT_COLORS, LIMBS

# A figure in an image of 720x480 (height x width), in OpenPose's order.
FIGURE = np.array(
    [(240, 90), (240, 170), (190, 170), (160, 260), (150, 350), (290, 170), (320, 260), (330, 350), (210, 360)]
    + [(205, 480), (200, 600), (270, 360), (275, 480), (280, 600), (228, 80), (252, 80), (212, 88), (268, 88)]
)
SIZE = (720, 480)

# poseParametersRender.hpp of CMU-Perceptual-Computing-Lab/openpose.
COCO_COLORS = [
    *[(255, 0, 85), (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)],
    *[(0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (255, 0, 170)],
    *[(170, 0, 255), (255, 0, 255), (85, 0, 255)],
]
# In this project's order; then the middle of the hips, and the left and the right foot's big toe, small toe, heel.
BODY_25_COLORS = [
    *[(255, 0, 85), (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)],
    *[(0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (255, 0, 170)],
    *[(170, 0, 255), (255, 0, 255), (85, 0, 255), (255, 0, 0)],
    *[(0, 0, 255), (0, 0, 255), (0, 0, 255), (0, 255, 255), (0, 255, 255), (0, 255, 255)],
]
BODY_25_LIMBS = [
    *[(1, 18), (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (18, 8), (8, 9), (9, 10), (18, 11), (11, 12), (12, 13)],
    *[(1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (13, 19), (19, 20), (13, 21), (10, 22), (22, 23), (10, 24)],
]
HAND_EDGES = [
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
]


def draw_controlnet(people, size=SIZE, thickness=1.0, confidence=None, canvas=None):
    """Bones as ellipses at 60 %, joints of radius 4; `confidence` dims both, as DWPose's copies do."""
    canvas = np.zeros((*size, 3), np.uint8) if canvas is None else canvas.copy()
    confidence = np.ones(18) if confidence is None else confidence
    width = round(4 * thickness)
    for xy, visible in people:
        for (start, end), color in zip(LIMBS, JOINT_COLORS, strict=False):
            if visible[start] and visible[end]:
                (x, y), (dx, dy) = (xy[start] + xy[end]) / 2, xy[start] - xy[end]
                axes = (int(np.hypot(dx, dy) / 2), width)
                outline = cv2.ellipse2Poly((int(x), int(y)), axes, int(np.degrees(np.arctan2(dy, dx))), 0, 360, 1)
                dimmed = np.array(color) * 0.6 * confidence[start] * confidence[end]
                cv2.fillConvexPoly(canvas, outline, dimmed.astype(int).tolist())
    for xy, visible in people:
        for point, color, seen, share in zip(xy, JOINT_COLORS, visible, confidence, strict=True):
            if seen:
                dimmed = (np.array(color) * share).astype(int).tolist()
                cv2.circle(canvas, point.astype(int).tolist(), width, dimmed, -1)
    return canvas


def draw_openpose(people, size=SIZE, thickness=1.0, body_25=False, blended=False):
    """Lines in the colour of their end and discs over them; blended at 60 % over black, or not at all."""
    canvas = np.zeros((*size, 3), np.uint8)
    colors, limbs = (BODY_25_COLORS, BODY_25_LIMBS) if body_25 else (COCO_COLORS, LIMBS)
    for xy, visible in people:
        if body_25:
            feet = [xy[13] + offset for offset in ((18, 20), (26, 16), (-6, 14))]
            feet += [xy[10] + offset for offset in ((-18, 20), (-26, 16), (6, 14))]
            xy = np.concatenate([xy, [(xy[8] + xy[11]) / 2], feet])
            visible = np.concatenate([visible, [visible[8] and visible[11]], [visible[13]] * 3, [visible[10]] * 3])
        for start, end in limbs:
            if visible[start] and visible[end]:
                line = xy[[start, end]].astype(int).tolist()
                cv2.line(canvas, line[0], line[1], colors[end], max(1, round(4 * thickness)))
        for point, color, seen in zip(xy, colors, visible, strict=True):
            if seen:
                cv2.circle(canvas, point.astype(int).tolist(), round(6 * thickness), color, -1)
    return (canvas * 0.6).astype(np.uint8) if blended else canvas


def add_hands_and_face(canvas, xy, rng):
    """21 blue points with a rainbow of edges at each wrist, and 68 white points round the nose."""
    for elbow, wrist in ((3, 4), (6, 7)):
        way = np.arctan2(*(xy[wrist] - xy[elbow])[::-1])
        points = [xy[wrist] + rng.normal(0, 2, 2)]
        for finger in range(5):
            angle = way + 0.3 * (finger - 2)
            points += [xy[wrist] + (20 + 12 * joint) * np.array([np.cos(angle), np.sin(angle)]) for joint in range(4)]
        points = np.rint(points).astype(int).tolist()
        for number, (start, end) in enumerate(HAND_EDGES):
            color = [255 * value for value in colorsys.hsv_to_rgb(number / len(HAND_EDGES), 1, 1)]
            cv2.line(canvas, points[start], points[end], color, 2)
        for point in points:
            cv2.circle(canvas, point, 4, (0, 0, 255), -1)
    for x, y in (xy[0] + rng.uniform(-30, 30, (68, 2))).astype(int).tolist():
        cv2.circle(canvas, (x, y), 1, (255, 255, 255), -1)
    return canvas
