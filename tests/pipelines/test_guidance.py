"""Eq. 7 as published against the fewest evaluations that give the same."""

import pytest
import torch

from diffusers_cfld.pipelines.guidance import GuidanceBranch, combine_guidance, guidance_weights

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


def test_a_single_branch_is_returned_untouched():
    prediction = torch.randn(1, 4, 2, 2)
    assert combine_guidance([prediction], [1.0]) is prediction
