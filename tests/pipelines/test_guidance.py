"""Eq. 7 as published against the fewest evaluations that give the same."""

import pytest
import torch

from diffusers_cfld.pipelines.guidance import GuidanceBranch, acts_at, combine_guidance, guidance_weights

NULL, POSE, FULL = GuidanceBranch


@pytest.mark.parametrize(
    ("pose_scale", "appearance_scale", "branches"),
    [
        (2.0, 2.0, {NULL, FULL}),
        (1.0, 3.0, {POSE, FULL}),
        (1.0, 1.0, {FULL}),
        (1.5, 3.0, {NULL, POSE, FULL}),
        (2.0, 0.0, {NULL, POSE}),
        (1.0, 0.0, {POSE}),
        (0.0, 0.0, {NULL}),
        (0.0, 2.0, {NULL, POSE, FULL}),
    ],
)
def test_only_branches_with_weight_are_evaluated_and_the_result_is_eq_7(pose_scale, appearance_scale, branches):
    generator = torch.Generator().manual_seed(0)
    null, pose, full = torch.randn(3, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    published = null + pose_scale * (pose - null) + appearance_scale * (full - pose)

    weights = guidance_weights(pose_scale, appearance_scale)
    predictions = {NULL: null, POSE: pose, FULL: full}
    combined = combine_guidance([predictions[branch] for branch in weights], tuple(weights.values()))

    assert set(weights) == branches
    torch.testing.assert_close(combined, published, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("num_steps", "start", "stop", "expected"),
    [
        (4, 0.0, 1.0, [0, 1, 2, 3]),
        (4, 0.25, 0.75, [1, 2]),
        (4, 0.3, 1.0, [2, 3]),  # a step that begins before the interval is outside
        (4, 0.0, 0.7, [0, 1]),  # and so is one that ends after it
        (10, 0.3, 0.7, [3, 4, 5, 6]),
        (3, 0.5, 0.6, []),
    ],
)
def test_an_interval_holds_the_steps_that_lie_wholly_in_it(num_steps, start, stop, expected):
    assert [step for step in range(num_steps) if acts_at(step, num_steps, start, stop)] == expected


def test_a_single_branch_is_returned_untouched():
    prediction = torch.randn(1, 4, 2, 2)
    assert combine_guidance([prediction], [1.0]) is prediction
