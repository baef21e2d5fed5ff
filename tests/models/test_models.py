"""What every model of the package promises: sizes, saving, dtypes, gradients, checkpointing, compilation."""

import inspect
import json

import pytest
import torch
from diffusers import AutoModel, DDPMScheduler, UNet2DConditionModel
from testing_utils import (
    APPEARANCE_ENCODER_CONFIG,
    POSE_ADAPTER_CONFIG,
    PROMPT_DECODER_CONFIG,
    SOURCE_ENCODER_CONFIG,
    fill,
    tiny_image,
    tiny_pose,
)

from diffusers_cfld import AppearanceEncoder, PerceptionRefinedDecoder, PoseAdapter, SwinImageEncoder


def feature_maps(batch_size=2):
    generator = torch.Generator().manual_seed(0)
    sizes = {"stage1": (16, 16), "stage2": (32, 8), "stage3": (64, 4), "stage4": (128, 2)}
    return {
        name: torch.randn(batch_size, channels, size, size, generator=generator)
        for name, (channels, size) in sizes.items()
    }


CASES = {
    SwinImageEncoder: (SOURCE_ENCODER_CONFIG, lambda: 2 * tiny_image(batch_size=2) - 1),
    PerceptionRefinedDecoder: (PROMPT_DECODER_CONFIG, lambda: feature_maps()["stage4"]),
    AppearanceEncoder: (APPEARANCE_ENCODER_CONFIG, feature_maps),
    PoseAdapter: (POSE_ADAPTER_CONFIG, lambda: tiny_pose(batch_size=2)),
}


def flatten(output):
    tensors = []
    for value in output.to_tuple() if hasattr(output, "to_tuple") else output:
        tensors += list(value.values()) if isinstance(value, dict) else [value]
    return tensors


def cast(value, dtype):
    return {key: item.to(dtype) for key, item in value.items()} if isinstance(value, dict) else value.to(dtype)


@pytest.fixture(params=CASES, ids=lambda model_class: model_class.__name__)
def case(request):
    config, make_input = CASES[request.param]
    model = fill(request.param(**config), request.param.__name__)
    return model, make_input()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_whatever_was_saved_in_a_folder_the_last_save_is_loaded(case, tmp_path, variant):
    model, _ = case
    former = type(model)(**CASES[type(model)][0])
    weight = next(iter(model.state_dict()))
    for first, last in (
        ({"max_shard_size": "100KB"}, {}),
        ({}, {"max_shard_size": "100KB"}),
        ({}, {"safe_serialization": False}),
        ({"max_shard_size": "100KB"}, {"safe_serialization": False}),
    ):
        former.save_pretrained(tmp_path, variant=variant, **first)
        model.save_pretrained(tmp_path, variant=variant, **last)
        loaded = type(model).from_pretrained(tmp_path, variant=variant)
        assert torch.equal(loaded.state_dict()[weight], model.state_dict()[weight]), (first, last)
        for file in tmp_path.iterdir():
            file.unlink()


def test_published_defaults_have_the_published_parameter_counts():
    with torch.device("meta"):
        counts = {
            model_class: sum(parameter.numel() for parameter in model_class().parameters()) for model_class in CASES
        }
        unet = UNet2DConditionModel(cross_attention_dim=768)
    assert counts[SwinImageEncoder] == 86_991_864
    assert counts[PerceptionRefinedDecoder] == 97_712_128 + 12_288  # with the null prompt
    assert counts[AppearanceEncoder] == 22_549_632
    assert counts[PoseAdapter] == 30_636_480
    with torch.device("meta"):
        layers = AppearanceEncoder().layer_names
    trained = sum(
        parameter.numel()
        for name in layers
        for projection in (unet.get_submodule(name).to_k, unet.get_submodule(name).to_v)
        for parameter in projection.parameters()
    )
    assert trained == 10_321_920
    assert sum(counts.values()) + trained == 248_224_312


def test_published_defaults_fit_each_other_and_the_stock_unet():
    with torch.device("meta"):
        source_encoder, prompt_decoder = SwinImageEncoder(), PerceptionRefinedDecoder()
        appearance_encoder, pose_adapter = AppearanceEncoder(), PoseAdapter()
        features = source_encoder(torch.empty(1, 3, 256, 256)).feature_maps
        prompts = prompt_decoder(features["stage4"])
        query_biases = appearance_encoder(features).query_biases
        residuals = pose_adapter(torch.empty(1, 21, 256, 256)).residuals
    assert [tuple(value.shape) for value in features.values()] == [
        (1, 128, 64, 64),
        (1, 256, 32, 32),
        (1, 512, 16, 16),
        (1, 1024, 8, 8),
    ]
    assert prompts.prompt_embeds.shape == prompts.null_prompt_embeds.shape == (1, 16, 768)
    assert [tuple(value.shape) for value in query_biases.values()] == (
        [(1, 1280, 16, 16)] * 3 + [(1, 640, 32, 32)] * 3 + [(1, 320, 64, 64)] * 3
    )
    assert [tuple(value.shape) for value in residuals.values()] == [
        (1, 320, 64, 64),
        (1, 640, 32, 32),
        (1, 1280, 16, 16),
    ]


def test_biases_from_chosen_stages():
    """A level may read any feature map: one of the size at which its up block works costs least."""
    options = {"feature_channels": (256, 512), "hidden_channels": (64, 64), "query_channels": (320, 640)}
    options |= {"num_attention_heads": (2, 4), "up_block_indices": (3, 2), "num_layers": 1}
    with torch.device("meta"):
        features = SwinImageEncoder()(torch.empty(1, 3, 256, 256)).feature_maps
        query_biases = AppearanceEncoder(**options, feature_stages=(2, 3))(features).query_biases
    assert [tuple(value.shape) for value in query_biases.values()] == [(1, 640, 16, 16)] * 3 + [(1, 320, 32, 32)] * 3
    with pytest.raises(ValueError, match=r"must hold 'stage3' of shape \(batch, 512"):
        AppearanceEncoder(**options, feature_stages=(2, 3))({"stage2": features["stage2"]})


def test_fresh_weights_start_as_published():
    decoder = PerceptionRefinedDecoder()
    assert decoder.null_prompt_embeds.std().item() == pytest.approx(1, abs=0.05)
    assert decoder.query_embeds.std().item() == pytest.approx(0.02, abs=0.002)
    assert decoder.query_position_embeds.std().item() == pytest.approx(0.02, abs=0.002)
    encoder = AppearanceEncoder(**APPEARANCE_ENCODER_CONFIG)
    output = encoder(feature_maps())
    assert all(bias.abs().max() == 0 for bias in output.query_biases.values())


def test_tuple_and_dict_outputs_agree_and_begin_with_a_tensor(case):
    model, inputs = case
    with torch.no_grad():
        as_tuple, as_dict = model(inputs, return_dict=False), model(inputs)
    assert isinstance(as_tuple, tuple)
    assert isinstance(as_tuple[0], torch.Tensor)
    assert torch.equal(as_tuple[0], as_dict[0])
    for left, right in zip(flatten(as_tuple), flatten(as_dict), strict=True):
        assert torch.equal(left, right)


def test_inputs_are_not_modified_and_outputs_repeat(case):
    model, inputs = case
    before = {k: v.clone() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.clone()
    with torch.no_grad():
        first, second = flatten(model(inputs)), flatten(model(inputs))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    if isinstance(inputs, dict):
        assert inputs.keys() == before.keys()
        assert all(torch.equal(inputs[name], before[name]) for name in before)
    else:
        assert torch.equal(inputs, before)


def test_an_output_may_be_changed_without_reaching_the_weights(case):
    model, inputs = case
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for tensor in flatten(model(inputs)):
            if not any(tensor is item for item in (inputs.values() if isinstance(inputs, dict) else [inputs])):
                tensor.zero_()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_save_and_load_gives_the_same_output(case, tmp_path):
    model, inputs = case
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected, actual = flatten(model(inputs)), flatten(loaded(inputs))
    assert all(torch.equal(left, right) for left, right in zip(expected, actual, strict=True))
    assert not any(buffer.is_meta for buffer in loaded.buffers())
    config = json.loads((tmp_path / "config.json").read_text())
    parameters = set(inspect.signature(type(model).__init__).parameters) - {"self"}
    assert {name for name in config if not name.startswith("_")} == parameters


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of diffusers with `disable_mmap`
@pytest.mark.parametrize(
    "options",
    [
        {"low_cpu_mem_usage": False},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"device_map": "auto"},
        {"dtype": torch.bfloat16},
        {"torch_dtype": torch.float16},
        {"use_safetensors": True},
        {"disable_mmap": True},
    ],
    ids=str,
)
def test_loading_options(case, tmp_path, options):
    model, inputs = case
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, **options)
    dtype = options.get("dtype", options.get("torch_dtype", torch.float32))
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    with torch.no_grad():
        outputs = flatten(loaded(cast(inputs, dtype)))
    assert all(output.isfinite().all() and output.dtype == dtype for output in outputs)


def test_shards_and_variants(case, tmp_path):
    model, inputs = case
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    model.save_pretrained(tmp_path, variant="v1", max_shard_size=f"{size // 2000}KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = type(model).from_pretrained(tmp_path, variant="v1")
    with torch.no_grad():
        expected, actual = flatten(model(inputs)), flatten(loaded(inputs))
    assert all(torch.equal(left, right) for left, right in zip(expected, actual, strict=True))
    with pytest.raises(OSError, match=r"variant|no file named|Error no file"):
        type(model).from_pretrained(tmp_path)


def test_half_precision_follows_full_precision(case):
    model, inputs = case
    with torch.no_grad():
        expected = flatten(model(inputs))
        actual = flatten(model.to(torch.bfloat16)(cast(inputs, torch.bfloat16)))
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == torch.bfloat16
        assert (left.float() - right).norm() < 0.05 * right.norm()


def test_every_parameter_gets_a_gradient(case):
    model, inputs = case
    sum(output.square().mean() for output in flatten(model(inputs))).backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # A constant added to a key shifts all scores of a query alike: the softmax does not see it.
    missing = [name for name in missing if "qkv.bias" not in name]
    assert not missing


def test_gradient_checkpointing_changes_nothing_but_memory(case):
    model, inputs = case
    assert not model.is_gradient_checkpointing
    gradients = []
    for enable in (False, True):
        if enable:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        sum(output.square().mean() for output in flatten(model(inputs))).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_compiles_without_a_graph_break(case):
    model, inputs = case
    torch._dynamo.reset()
    with torch.no_grad():
        expected = flatten(model(inputs))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        actual = flatten(compiled(inputs))
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right)


def test_loads_through_auto_model_of_a_pipeline_folder(case, tmp_path):
    model, _ = case
    name = type(model).__name__
    model.save_pretrained(tmp_path / "part")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "CFLDPipeline", "part": ["diffusers_cfld", name]})
    )
    import diffusers_cfld

    assert diffusers_cfld.CFLDPipeline  # registers the package
    loaded = AutoModel.from_pretrained(str(tmp_path), subfolder="part")
    assert type(loaded) is type(model)


@pytest.mark.parametrize(
    ("model_class", "options", "message"),
    [
        (SwinImageEncoder, {"model_name": "resnet50"}, "must be a Swin Transformer of timm, got 'resnet50'"),
        (SwinImageEncoder, {"model_name": "swin_nothing"}, "must be a Swin Transformer of timm"),
        (SwinImageEncoder, {"image_size": 250}, "multiples of 32"),
        (SwinImageEncoder, {"image_size": (256, 176)}, "multiples of 32, the coarsest stride, got 256x176"),
        (PerceptionRefinedDecoder, {"num_attention_heads": 7}, "7 heads for 768"),
        (AppearanceEncoder, {"num_attention_heads": (2, 4, 7)}, "7 heads for 256"),
        (AppearanceEncoder, {"up_block_indices": (3, 2)}, "one entry per level"),
        (AppearanceEncoder, {"feature_stages": (1, 2)}, "one entry per level"),
        (PoseAdapter, {"block_out_channels": ()}, "one or more multiples"),
        (PoseAdapter, {"block_out_channels": (48,)}, "one or more multiples"),
    ],
)
def test_impossible_settings_are_refused(model_class, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        model_class(**options)


@pytest.mark.parametrize(
    ("model_class", "inputs", "message"),
    [
        (SwinImageEncoder, torch.zeros(1, 3, 32, 64), r"\(batch, 3, 64, 64\), got \(1, 3, 32, 64\)"),
        (SwinImageEncoder, torch.zeros(1, 4, 64, 64), r"got \(1, 4, 64, 64\)"),
        (PerceptionRefinedDecoder, torch.zeros(1, 128, 4, 4), r"\(batch, 128, 2, 2\), got \(1, 128, 4, 4\)"),
        (AppearanceEncoder, {"stage1": torch.zeros(1, 16, 8, 8)}, "'stage2' of shape .*got nothing"),
        (AppearanceEncoder, {"stage1": torch.zeros(1, 17, 8, 8)}, r"'stage1' .*got shape \(1, 17, 8, 8\)"),
        (PoseAdapter, torch.zeros(1, 18, 64, 64), r"\(batch, 21, height, width\).*got \(1, 18, 64, 64\)"),
        (PoseAdapter, torch.zeros(1, 21, 60, 64), "multiples of 16, got"),
        (PoseAdapter, torch.zeros(21, 64, 64), r"got \(21, 64, 64\)"),
    ],
)
def test_wrong_inputs_are_refused_with_both_shapes(model_class, inputs, message):
    model = model_class(**CASES[model_class][0])
    with pytest.raises(ValueError, match=message):
        model(inputs)


@pytest.mark.parametrize(
    ("model_name", "image_size"),
    [("swin_tiny_patch4_window7_224", (256, 192)), ("swin_s3_tiny_224", 224), ("swinv2_cr_tiny_224", 224)],
)
def test_other_swins_of_timm_by_name_save_and_load(model_name, image_size, tmp_path):
    encoder = SwinImageEncoder(model_name, image_size=image_size, window_size=None).eval()
    encoder.save_pretrained(tmp_path)
    loaded = SwinImageEncoder.from_pretrained(tmp_path)
    image = torch.randn(1, 3, *encoder.image_size)
    with torch.no_grad():
        expected, actual = encoder(image), loaded(image)
    assert torch.equal(expected.sample, actual.sample)
    for feature_map, channels, stride in zip(
        expected.feature_maps.values(), encoder.feature_channels, encoder.feature_strides, strict=True
    ):
        height, width = encoder.image_size
        assert feature_map.shape == (1, channels, height // stride, width // stride)


def test_stochastic_depth_acts_in_training_only():
    encoder = fill(SwinImageEncoder(**{**SOURCE_ENCODER_CONFIG, "drop_path_rate": 0.9}))
    image = 2 * tiny_image() - 1
    with torch.no_grad():
        assert torch.equal(encoder(image).sample, encoder(image).sample)
        encoder.train()
        torch.manual_seed(0)
        outputs = [encoder(image).sample for _ in range(4)]
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])
