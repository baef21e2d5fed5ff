"""The scripts around the small model, from the images to the tables, each for a step or two."""

import create_small_model
import evaluate_small_model
import measure_recognition
import numpy as np
import pack_small_model
import PIL.Image
import pytest
import torch
import train_autoencoder
from drawn_figures import ARMS, PARTS, PATTERN_ACCENTS, DrawnFigures, draw_arms, draw_figure, draw_parts

from diffusers_cfld import CFLDPipeline
from diffusers_cfld.small_model import SMALL_MODEL


def run(script, *options):
    script.main(script.parse_args([str(option) for option in options]))


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    folder = tmp_path_factory.mktemp("created")
    run(create_small_model, "--output_dir", folder)
    return folder


def test_the_autoencoder_goes_on_from_a_saved_one(tmp_path):
    DrawnFigures(4, 2, (256, 176)).write_folder(tmp_path / "drawn")
    options = ["--train_data_dir", tmp_path / "drawn", "--train_batch_size", 4, "--max_train_steps", 1]
    run(train_autoencoder, *options, "--output_dir", tmp_path / "vae")
    vae = train_autoencoder.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert vae.config.scaling_factor != 0.18215  # measured, not the default
    options += ["--pretrained_vae", tmp_path / "vae", "--learning_rate", 0]
    run(train_autoencoder, *options, "--output_dir", tmp_path / "again")
    continued = train_autoencoder.AutoencoderKL.from_pretrained(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), continued.parameters(), strict=True))


def test_the_created_pipeline_has_the_shipped_models_architecture(created):
    pipe, shipped = CFLDPipeline.from_pretrained(created), CFLDPipeline.from_pretrained(SMALL_MODEL, variant="fp16")
    for name in ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter", "unet", "vae"):
        shapes, expected = (
            {key: value.shape for key, value in getattr(model, name).state_dict().items()} for model in (pipe, shipped)
        )
        assert shapes == expected, name
    assert all(encoder.proj_out.weight.any() for encoder in pipe.appearance_encoder.encoders)


def test_packing_and_measuring(created, tmp_path, capsys):
    packed = tmp_path / "packed"
    run(pack_small_model, "--model", created, "--output_dir", packed)
    assert "_name_or_path" not in "".join(path.read_text() for path in packed.rglob("*.json"))
    options = ["--model", packed, "--variant", "fp16", "--steps", 1, "--first_identity", 50]
    run(evaluate_small_model, *options, "--num_pairs", 7, "--grid", tmp_path / "grid.png")
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[-5:]]
    psnr = {name: float(value) for name, value, _ in rows}
    assert list(psnr) == ["source copied", "autoencoder", "image and pose", "another's image", "another's pose"]
    assert psnr["autoencoder"] > psnr["source copied"] + 6 > psnr["image and pose"]
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (6 * 176, 2 * 4 * 256)
    run(measure_recognition, *options, "--num_pairs", 2)
    assert "| all of it | 4 | 0 % |" in capsys.readouterr().out


def test_what_is_recognised():
    people, verdicts = DrawnFigures(40, 2, (256, 176)), []
    for index in range(0, 80, 2):
        number, _, pose = people.locate(index)
        figure = people.identity(number), people.pose(number, pose)
        truth = draw_figure(*figure, (128, 96))[0]
        parts, arms = draw_parts(*figure, (128, 96)), draw_arms(*figure, (128, 96))
        assert all(measure_recognition.judge(truth, truth, parts, arms).values())
        # One colour for each garment, skin for every sleeve, everything in grey.
        plain, bare = truth.copy(), truth.copy()
        for accent in PATTERN_ACCENTS:
            ground = parts == PARTS.index(accent.removesuffix("_accent"))
            if ground.any():
                plain[parts == PARTS.index(accent)] = truth[ground].mean(0)
        sleeves = (arms == ARMS.index("right_sleeve")) | (arms == ARMS.index("left_sleeve"))
        bare[sleeves] = truth[parts == PARTS.index("skin")].mean(0)
        grey = np.full_like(truth, 128)
        verdicts.append([measure_recognition.judge(image, truth, parts, arms) for image in (plain, bare, grey)])
    patterns = [plain["patterns"] for plain, _, _ in verdicts if "patterns" in plain]
    assert len(patterns) > 10
    assert not any(patterns)
    # Some have none to lose.
    sleeves = [bare["sleeves"] for _, bare, _ in verdicts if "sleeves" in bare]
    assert 0.1 < np.mean(sleeves) < 0.6
    assert np.mean([grey["colours"] for _, _, grey in verdicts]) < 0.1
    assert not any(grey["all of it"] for _, _, grey in verdicts)
