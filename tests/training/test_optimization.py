import pytest
import torch
from diffusers import UNet2DConditionModel
from testing_utils import (
    APPEARANCE_ENCODER_CONFIG,
    PROMPT_DECODER_CONFIG,
    UNET_CONFIG,
    load_reference_json,
)

from diffusers_cfld import AppearanceEncoder, PerceptionRefinedDecoder, PoseAdapter, SwinImageEncoder
from diffusers_cfld.training import (
    CFLDTrainingModule,
    check_trainable_dtype,
    parameter_groups,
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
    names = module.set_trainable()
    assert set(names) == set(trainable_parameters(module))
    counts = {name: sum(p.numel() for p in trainable_parameters(part).values()) for name, part in module.parts.items()}
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
    everything = {name for name, _ in unet.named_parameters()}
    names = set_unet_trainable(unet, layer_names)
    assert sorted(names) == sorted(f"{layer}.{kv}.weight" for layer in layer_names for kv in ("to_k", "to_v"))
    assert set(trainable_parameters(unet)) == set(names)
    assert set(set_unet_trainable(unet, layer_names, "all")) == everything == set(trainable_parameters(unet))
    assert set_unet_trainable(unet, layer_names, "none") == ()
    assert trainable_parameters(unet) == {}


def test_choice_errors(unet, layer_names):
    with pytest.raises(ValueError, match="`train` must be 'kv', 'all' or 'none', got 'q'"):
        set_unet_trainable(unet, layer_names, "q")
    with pytest.raises(ValueError, match=r"`layer_names` needs 'up_blocks.9.attn2.to_k', which this UNet2D"):
        set_unet_trainable(unet, ["up_blocks.9.attn2"], "kv")


@pytest.fixture
def parts(unet):
    decoder = PerceptionRefinedDecoder(**PROMPT_DECODER_CONFIG)
    return {"unet": unet.requires_grad_(False), "prompt_decoder": decoder, "head": torch.nn.Linear(2, 2)}


def test_groups_per_part_with_their_rates(parts):
    groups = parameter_groups(parts, 1e-4, {"head": 10.0})
    assert [group["name"] for group in groups] == ["prompt_decoder", "head"]
    assert [group["lr"] for group in groups] == [1e-4, 10 * 1e-4]
    assert sum(len(group["params"]) for group in groups) == sum(
        len(trainable_parameters(part)) for part in parts.values()
    )
    optimizer = torch.optim.Adam(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 10 * 1e-4]


def test_group_errors(parts):
    with pytest.raises(ValueError, match=r"names 'unet', where nothing trains; .* \['prompt_decoder', 'head'\]"):
        parameter_groups(parts, 1e-4, {"unet": 2.0})
    with pytest.raises(ValueError, match="names 'decoder', where nothing trains"):
        parameter_groups(parts, 1e-4, {"decoder": 2.0})
    with pytest.raises(ValueError, match=r"`multipliers` must be >= 0, got -1.0 for 'head'"):
        parameter_groups(parts, 1e-4, {"head": -1.0})
    with pytest.raises(ValueError, match="there is nothing to train"):
        parameter_groups({"unet": parts["unet"]}, 1e-4)


def test_weights_that_train_must_be_float32():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).half())
    with pytest.raises(ValueError, match=r"must be float32, got torch.float16 for '1.weight' and 1 more"):
        check_trainable_dtype(module)
    module[1].requires_grad_(False)
    check_trainable_dtype(module)
