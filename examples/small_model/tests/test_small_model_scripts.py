"""The scripts that make the small model, from the drawing to the table, each for a step or two."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from drawn_figures import DrawnFigures, draw_arms, draw_figure

from diffusers_cfld import CFLDPipeline, hybrid_granularity_attention


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return DrawnFigures(4, 2, (256, 176)).write_folder(tmp_path_factory.mktemp("drawn")).parent


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    script = import_module("create_small_model")
    script.main(script.parse_args(["--output_dir", str(folder)]))
    return folder


def test_the_autoencoder_starts_by_passing_colours_through(drawn, tmp_path):
    script = import_module("train_autoencoder")
    options = ["--train_data_dir", str(drawn), "--output_dir", str(tmp_path), "--max_train_samples", "8"]
    options += ["--train_batch_size", "4", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest"]
    script.main(script.parse_args([*options, "--max_train_steps", "1"]))
    assert json.loads((tmp_path / "checkpoint" / "step.json").read_text()) == {"step": 1}
    vae = script.AutoencoderKL.from_pretrained(tmp_path / "vae")
    with pytest.raises(SystemExit, match="has a checkpoint: use --resume_from_checkpoint latest"):
        script.main(script.parse_args(options[:-2]))
    again = ["--pretrained_vae", str(tmp_path / "vae"), "--learning_rate", "0", "--max_train_steps", "1"]
    script.main(script.parse_args([*options, *again, "--output_dir", str(tmp_path / "again")]))
    continued = script.AutoencoderKL.from_pretrained(tmp_path / "again" / "vae")
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), continued.parameters(), strict=True))


def test_the_untrained_model_and_its_ablations(start, tmp_path):
    script = import_module("create_small_model")
    whole = CFLDPipeline.from_pretrained(start)
    assert whole.target_size == (128, 96)
    assert any(encoder.proj_out.weight.any() for encoder in whole.appearance_encoder.encoders)
    options = ["--without_query_biases", "--without_refinement", "--source_encoder_from", str(start), "--seed", "1"]
    script.main(script.parse_args(["--output_dir", str(tmp_path), *options]))
    ablated = CFLDPipeline.from_pretrained(tmp_path)
    pairs = zip(whole.source_encoder.parameters(), ablated.source_encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(whole.unet.conv_in.weight, ablated.unet.conv_in.weight)
    assert not any(encoder.proj_out.weight.any() for encoder in ablated.appearance_encoder.encoders)
    assert len(ablated.prompt_decoder.blocks) == 0

    script.main(script.parse_args(["--output_dir", str(tmp_path), "--all_but_biases_from", str(start), "--seed", "1"]))
    other = CFLDPipeline.from_pretrained(tmp_path)
    for part in ("source_encoder", "prompt_decoder", "pose_adapter", "unet", "vae"):
        pairs = zip(getattr(whole, part).parameters(), getattr(other, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), part
    assert all(encoder.proj_in.weight.any() for encoder in other.appearance_encoder.encoders)
    assert not any(encoder.proj_out.weight.any() for encoder in other.appearance_encoder.encoders)


def test_new_layers_of_the_u_net_add_nothing_at_first(start, tmp_path, monkeypatch):
    script = import_module("create_small_model")
    with monkeypatch.context() as patch:
        patch.setattr(script, "DECODER_TRANSFORMER_LAYERS", (1, 1, 1))
        script.main(script.parse_args(["--output_dir", str(tmp_path / "small")]))
        with pytest.raises(SystemExit, match="has a layer that the small model has not"):
            script.main(script.parse_args(["--output_dir", str(tmp_path / "no"), "--all_from", str(start)]))
    options = ["--output_dir", str(tmp_path / "grown"), "--all_from", str(tmp_path / "small"), "--seed", "1"]
    script.main(script.parse_args(options))
    small, grown = (CFLDPipeline.from_pretrained(tmp_path / name) for name in ("small", "grown"))
    assert len(list(grown.unet.parameters())) > len(list(small.unet.parameters()))
    for part in ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter", "vae"):
        pairs = zip(getattr(small, part).parameters(), getattr(grown, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), part
    inputs = torch.randn(2, 8, 16, 12), torch.tensor([999, 0]), torch.randn(2, 16, 128)
    with torch.no_grad():
        torch.testing.assert_close(grown.unet(*inputs).sample, small.unet(*inputs).sample)


def test_attention_where_cells_are_coarsest_is_left_out(start, tmp_path):
    script = import_module("create_small_model")
    small = CFLDPipeline.from_pretrained(start)
    config = {**small.unet.config, "mid_block_type": "UNetMidBlock2DCrossAttn"}
    config |= {"down_block_types": ["CrossAttnDownBlock2D"] * 3, "up_block_types": ["CrossAttnUpBlock2D"] * 3}
    small.register_modules(unet=script.UNet2DConditionModel.from_config(config))
    small.save_pretrained(tmp_path / "before")
    options = ["--output_dir", str(tmp_path / "after"), "--all_from", str(tmp_path / "before")]
    script.main(script.parse_args(options))
    kept = CFLDPipeline.from_pretrained(tmp_path / "after").unet.state_dict()
    before = small.unet.state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in kept)
    left_out = {name for name in before if name not in kept}
    assert left_out == {name for name in before if name.startswith(script.LEFT_OUT)}


@pytest.mark.parametrize("finest", [32, 96])
def test_channels_are_doubled_without_changing_what_they_do(tmp_path, monkeypatch, finest):
    script = import_module("create_small_model")
    with monkeypatch.context() as patch:
        patch.setattr(script, "WIDTHS", (finest // 2, 40, 64))
        script.main(script.parse_args(["--output_dir", str(tmp_path / "narrow")]))
        # All widths doubled leave every group of the normalisations as it was; one alone not those of concatenations.
        patch.setattr(script, "WIDTHS", (finest, 80, 128) if finest == 32 else (finest, 40, 64))
        options = ["--all_from", str(tmp_path / "narrow"), "--seed", "1", "--output_dir", str(tmp_path / "wide")]
        script.main(script.parse_args(options))
        patch.setattr(script, "WIDTHS", (5 * finest // 2, 40, 64))
        with pytest.raises(SystemExit, match="Only as many or twice as many channels"):
            script.main(script.parse_args(options))
    narrow, wide = (CFLDPipeline.from_pretrained(tmp_path / name) for name in ("narrow", "wide"))
    assert wide.unet.config.block_out_channels[0] == 2 * narrow.unet.config.block_out_channels[0]
    weight = wide.unet.conv_out.weight
    assert not torch.equal(weight[:, ::2], weight[:, 1::2])
    pose_map, feature_maps = torch.rand(2, 21, 128, 96), narrow.source_encoder(torch.rand(2, 3, 128, 96)).feature_maps
    latents, timesteps, prompt = torch.randn(2, 8, 16, 12), torch.tensor([999, 0]), torch.randn(2, 16, 128)
    found = []
    with torch.no_grad():
        for pipe in (narrow, wide):
            residuals = pipe.pose_adapter(pose_map).residuals
            biases = pipe.appearance_encoder(feature_maps).query_biases
            tokens = {name: bias.flatten(2).transpose(1, 2) for name, bias in biases.items()}
            with hybrid_granularity_attention(pipe.unet, tokens):
                sample = pipe.unet(latents, timesteps, prompt, return_dict=True).sample
            found.append((residuals["down_blocks.0"], sample))
    torch.testing.assert_close(found[1][0][:, ::2], found[0][0], atol=1e-4, rtol=1e-4)
    if finest == 32:
        torch.testing.assert_close(found[1][1], found[0][1], atol=1e-4, rtol=1e-4)
    else:
        assert (found[1][1] - found[0][1]).std() < 0.15 * found[0][1].std()


def test_packing_and_measuring(start, tmp_path, capsys):
    script = import_module("pack_small_model")
    script.main(script.parse_args(["--model", str(start), "--output_dir", str(tmp_path / "packed")]))
    for file in (tmp_path / "packed").rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())
    assert CFLDPipeline.from_pretrained(tmp_path / "packed", variant="fp16").unet.dtype == torch.float32

    script = import_module("evaluate_small_model")
    options = ["--model", str(tmp_path / "packed"), "--variant", "fp16", "--num_pairs", "12", "--steps", "1"]
    options += ["--json", str(tmp_path / "table.json"), "--grid", str(tmp_path / "grid.png"), "--first_identity", "50"]
    script.main(script.parse_args(options))
    table = {row["row"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(table) == ["source copied", "autoencoder", "photo and pose", "another's photo", "another's pose"]
    assert table["autoencoder"]["psnr"] > table["source copied"]["psnr"] + 6 > table["photo and pose"]["psnr"]
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    assert "| source copied |" in capsys.readouterr().out
    script = import_module("measure_recognition")
    options = ["--model", str(tmp_path / "packed"), "--variant", "fp16", "--num_pairs", "2", "--steps", "1"]
    script.main(script.parse_args([*options, "--first_identity", "50"]))
    assert "| all of it | 4 | 0 % |" in capsys.readouterr().out


def test_what_is_recognised():
    import_module("evaluate_small_model")
    script = import_module("measure_recognition")
    people, verdicts = DrawnFigures(40, 2, (256, 176)), []
    for index in range(0, 80, 2):
        number, _, pose = people.locate(index)
        who = people.identity(number), people.pose(number, pose)
        truth = draw_figure(*who, (128, 96))[0]
        parts, arms = script.draw_parts(*who, (128, 96), script.KINDS), draw_arms(*who, (128, 96))
        assert all(script.judge(truth, truth, parts, arms).values())
        # One colour for each garment, skin for every sleeve, everything in grey.
        plain, bare = truth.copy(), truth.copy()
        for accent in script.PATTERN_ACCENTS:
            ground = parts == script.KINDS.index(accent.removesuffix("_accent"))
            if ground.any():
                plain[parts == script.KINDS.index(accent)] = truth[ground].mean(0)
        skin = parts == script.KINDS.index("skin")
        bare[(arms == 2) | (arms == 4)] = truth[skin].mean(0)
        grey = np.full_like(truth, 128)
        verdicts.append([script.judge(picture, truth, parts, arms) for picture in (plain, bare, grey)])
    patterns = [plain["patterns"] for plain, _, _ in verdicts if "patterns" in plain]
    assert len(patterns) > 10
    assert not any(patterns)
    # Some have none to lose.
    sleeves = [bare["sleeves"] for _, bare, _ in verdicts if "sleeves" in bare]
    assert 0.1 < np.mean(sleeves) < 0.6
    assert np.mean([grey["colours"] for _, _, grey in verdicts]) < 0.1
    assert not any(grey["all of it"] for _, _, grey in verdicts)
