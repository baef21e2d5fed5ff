import pytest
import torch
from diffusers import UNet2DConditionModel
from testing_utils import APPEARANCE_ENCODER_CONFIG, UNET_CONFIG, load_reference, load_reference_json

from diffusers_cfld import AppearanceEncoder, PerceptionRefinedDecoder, PoseAdapter, SwinImageEncoder
from diffusers_cfld.training import (
    PUBLISHED_LEARNING_RATE,
    CFLDTrainingModule,
    get_cfld_schedule,
    scaled_learning_rate,
    set_unet_trainable,
    trainable_parameters,
)


@pytest.fixture(scope="module")
def unet():
    with torch.device("meta"):
        return UNet2DConditionModel(**UNET_CONFIG)


@pytest.fixture(scope="module")
def layer_names():
    with torch.device("meta"):
        return AppearanceEncoder(**APPEARANCE_ENCODER_CONFIG).layer_names


def test_the_published_sizes():
    """Table 1: 87.0 + 97.7 + 22.5 + 30.6 + 10.3 M, and the null prompt."""
    with torch.device("meta"):
        module = CFLDTrainingModule(
            UNet2DConditionModel(**load_reference_json("full_unet_config")),
            SwinImageEncoder(),
            PerceptionRefinedDecoder(),
            AppearanceEncoder(),
            PoseAdapter(),
        )
    module.set_trainable()
    counts = {
        name: sum(p.numel() for p in trainable_parameters(part).values()) for name, part in module.named_children()
    }
    assert counts == {
        "unet": 10_321_920,
        "source_encoder": 86_991_864,
        "prompt_decoder": 97_712_128 + 12_288,
        "appearance_encoder": 22_549_632,
        "pose_adapter": 30_636_480,
    }
    assert sum(counts.values()) == 248_224_312
    published = {key.removeprefix("model.") for key in load_reference_json("full_manifest")["trainable_unet_keys"]}
    assert set(trainable_parameters(module.unet)) == published


def test_what_of_the_unet_trains(unet, layer_names):
    set_unet_trainable(unet, layer_names)
    assert set(trainable_parameters(unet)) == {
        f"{layer}.{kv}.weight" for layer in layer_names for kv in ("to_k", "to_v")
    }
    set_unet_trainable(unet, layer_names, "all")
    assert set(trainable_parameters(unet)) == {name for name, _ in unet.named_parameters()}
    set_unet_trainable(unet, layer_names, "none")
    assert trainable_parameters(unet) == {}


def test_choice_errors(unet, layer_names):
    with pytest.raises(ValueError, match="`train` must be 'kv', 'all' or 'none', got 'q'"):
        set_unet_trainable(unet, layer_names, "q")
    with pytest.raises(AttributeError):
        set_unet_trainable(unet, ["up_blocks.9.attn2"], "kv")


def make_optimizer(lr=1.0):
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def learning_rates(optimizer, scheduler, num_steps):
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_schedule_is_the_published_one_at_every_step():
    published = load_reference("train")["train.lr"]
    optimizer = make_optimizer(PUBLISHED_LEARNING_RATE)
    rates = learning_rates(optimizer, get_cfld_schedule(optimizer, steps_per_epoch=40), len(published))
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), published, rtol=1e-14, atol=0)


def test_no_warmup_and_several_decays():
    optimizer = make_optimizer()
    scheduler = get_cfld_schedule(optimizer, 2, num_warmup_steps=0, decay_epochs=(2, 1), decay_factor=0.5)
    assert learning_rates(optimizer, scheduler, 6) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_decay_waits_for_the_end_of_the_warmup():
    optimizer = make_optimizer()
    rates = learning_rates(optimizer, get_cfld_schedule(optimizer, 1, num_warmup_steps=10, decay_epochs=(5,)), 11)
    assert rates[9] == 1.0
    assert rates[10] == pytest.approx(0.1)


def test_the_schedule_resumes():
    optimizer = make_optimizer()
    scheduler = get_cfld_schedule(optimizer, 40)
    learning_rates(optimizer, scheduler, 5)
    resumed_optimizer = make_optimizer()
    resumed = get_cfld_schedule(resumed_optimizer, 40)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert learning_rates(resumed_optimizer, resumed, 3) == learning_rates(optimizer, scheduler, 3)


def test_the_scaling_of_the_paper_gives_the_published_rate_within_12_percent():
    assert scaled_learning_rate(224) == pytest.approx(1.12e-4)
    assert scaled_learning_rate(1, learning_rate_per_pair=2e-6) == 2e-6
