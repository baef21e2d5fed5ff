import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from testing_utils import scheduler_config

from diffusers_cfld.training import cfld_loss, double_batch, min_snr_weights, prediction_target, repeat_appearance


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sources_come_first_in_the_doubled_batch():
    source, target = randn(2, 4, 8, 8, seed=1), randn(2, 4, 8, 8, seed=2)
    source_pose, target_pose = randn(2, 21, 16, 16, seed=3), randn(2, 21, 16, 16, seed=4)
    batch = double_batch(source, target, source_pose, target_pose)
    assert torch.equal(batch.latents[:2], source)
    assert torch.equal(batch.latents[2:], target)
    assert torch.equal(batch.pose_map[:2], source_pose)
    assert torch.equal(batch.pose_map[2:], target_pose)
    batch.latents.zero_()
    assert source.abs().min() > 0


def test_repeated_appearance_keeps_the_order_of_the_doubled_batch():
    encoded = randn(2, 3)
    assert torch.equal(repeat_appearance(encoded, 4), torch.cat([encoded, encoded]))
    assert repeat_appearance(encoded, 2) is encoded
    for batch_size in (0, 1, 3):
        with pytest.raises(ValueError, match=f"got {batch_size} samples for 2 sources"):
            repeat_appearance(encoded, batch_size)


def test_doubled_batch_errors():
    latents, pose = randn(2, 4, 8, 8), randn(2, 21, 16, 16)
    with pytest.raises(ValueError, match="`source_latents` and `target_latents` must have one shape"):
        double_batch(latents, latents[:1], pose, pose)
    with pytest.raises(ValueError, match="`source_pose_map` and `target_pose_map` must have one shape"):
        double_batch(latents, latents, pose, pose[:1])
    with pytest.raises(ValueError, match="got 1 pose maps for 2 latents"):
        double_batch(latents, latents, pose[:1], pose[:1])


def test_the_loss_is_the_published_mean():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    torch.testing.assert_close(cfld_loss(noise_pred, target), ((noise_pred - target) ** 2).mean())


def test_the_weights_of_the_two_terms():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    reconstruction = ((noise_pred - target)[:3] ** 2).mean()
    transfer = ((noise_pred - target)[3:] ** 2).mean()
    loss = cfld_loss(noise_pred, target, reconstruction_weight=0.5, transfer_weight=3.0)
    torch.testing.assert_close(loss, (0.5 * reconstruction + 3.0 * transfer) / 2)
    torch.testing.assert_close(cfld_loss(noise_pred, target, reconstruction_weight=0.0), transfer / 2)


def test_a_metric_weighs_channels():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    torch.testing.assert_close(cfld_loss(noise_pred, target, metric=torch.eye(4)), cfld_loss(noise_pred, target))
    first = cfld_loss(noise_pred, target, metric=torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0])))
    torch.testing.assert_close(first, (noise_pred - target)[:, 0].square().mean())
    root = randn(4, 4)
    mixed = torch.einsum("nchw,cd->ndhw", noise_pred - target, root)
    torch.testing.assert_close(cfld_loss(noise_pred, target, metric=root @ root.T), mixed.square().mean())
    with pytest.raises(ValueError, match=r"`metric` must have shape \(4, 4\), got \(3, 3\)"):
        cfld_loss(noise_pred, target, metric=torch.eye(3))


def test_cells_are_weighed():
    noise_pred, target = randn(6, 4, 8, 8, seed=1), randn(6, 4, 8, 8, seed=2)
    weights = torch.zeros(6, 1, 8, 8)
    torch.testing.assert_close(
        cfld_loss(noise_pred, target, cell_weights=weights + 2), 2 * cfld_loss(noise_pred, target)
    )
    weights[4, 0, 2, 5] = 6 * 64
    only = cfld_loss(noise_pred, target, cell_weights=weights)
    torch.testing.assert_close(only, (noise_pred - target)[4, :, 2, 5].square().mean())
    metric = torch.diag(torch.tensor([4.0, 0.0, 0.0, 0.0]))
    first = cfld_loss(noise_pred, target, cell_weights=weights, metric=metric)
    torch.testing.assert_close(first, (noise_pred - target)[4, 0, 2, 5].square())
    with pytest.raises(ValueError, match=r"`cell_weights` must have shape \(6, 1, 8, 8\), got \(6, 8, 8\)"):
        cfld_loss(noise_pred, target, cell_weights=weights[:, 0])


def test_the_loss_of_half_precision_is_computed_in_float32():
    noise_pred, target = (300 * randn(2, 4, 8, 8, seed=s) for s in (1, 2))  # squares overflow float16
    half = noise_pred.half()
    loss = cfld_loss(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ((half.float() - target) ** 2).mean())
    assert loss.isfinite()


def test_loss_errors():
    pred = randn(2, 4, 8, 8)
    with pytest.raises(ValueError, match="even number of samples, reconstructions first"):
        cfld_loss(pred[:1], pred[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        cfld_loss(pred, pred[..., :1])
    for weights in ((0.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="must be finite, >= 0 and not both 0"):
            cfld_loss(pred, pred, reconstruction_weight=weights[0], transfer_weight=weights[1])
    with pytest.raises(ValueError, match=r"`sample_weights` must have shape \(2,\), got \(1,\)"):
        cfld_loss(pred, pred, sample_weights=torch.ones(1))


def scheduler(prediction_type):
    return DDPMScheduler(**scheduler_config(), prediction_type=prediction_type)


def test_targets_by_prediction_type():
    latents, noise = randn(3, 4, 8, 8, seed=1), randn(3, 4, 8, 8, seed=2)
    timesteps = torch.tensor([0, 500, 999])
    assert torch.equal(prediction_target(scheduler("epsilon"), latents, noise, timesteps), noise)
    target = prediction_target(scheduler("v_prediction"), latents, noise, timesteps)
    alphas = scheduler("epsilon").alphas_cumprod[timesteps].view(3, 1, 1, 1)
    torch.testing.assert_close(target, alphas.sqrt() * noise - (1 - alphas).sqrt() * latents)
    assert prediction_target(scheduler("v_prediction"), latents.half(), noise.half(), timesteps).dtype == torch.float32
    with pytest.raises(ValueError, match="must be 'epsilon' or 'v_prediction', got 'sample'"):
        prediction_target(scheduler("sample"), latents, noise, timesteps)


def test_min_snr_weights():
    noise_scheduler, timesteps = scheduler("epsilon"), torch.arange(1000)
    snr = compute_snr(noise_scheduler, timesteps)
    alphas = noise_scheduler.alphas_cumprod
    torch.testing.assert_close(min_snr_weights(alphas, timesteps), snr.clamp(max=5) / snr, atol=0, rtol=1e-4)
    v_weights = min_snr_weights(alphas, timesteps, 5.0, "v_prediction")
    torch.testing.assert_close(v_weights, snr.clamp(max=5) / (snr + 1), atol=0, rtol=1e-4)
    assert min_snr_weights(torch.zeros(1), torch.tensor([0])).item() == 1.0  # zero terminal SNR
    loss = cfld_loss(torch.ones(2, 1), torch.zeros(2, 1), sample_weights=min_snr_weights(alphas, timesteps[[0, 999]]))
    torch.testing.assert_close(loss, (5 / snr[0] + 1) / 2, atol=0, rtol=1e-4)
    for gamma in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="`snr_gamma` must be a positive number"):
            min_snr_weights(alphas, timesteps, gamma)
    with pytest.raises(ValueError, match="must be 'epsilon' or 'v_prediction', got 'sample'"):
        min_snr_weights(alphas, timesteps, 5.0, "sample")
