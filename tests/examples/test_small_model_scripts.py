"""The scripts that make the small model, from the drawing to the table, each for a step or two."""

import json
import shutil

import numpy as np
import pytest
import torch
from example_scripts import load_example

from diffusers_cfld import CFLDPipeline, PerceptionRefinedDecoder, hybrid_granularity_attention
from diffusers_cfld.data.drawn_figures import DrawnFigures, draw_figure
from diffusers_cfld.data.drawn_parts import draw_arms
from diffusers_cfld.io_utils import ResumableArrays
from diffusers_cfld.training import AlignmentMaps


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return DrawnFigures(4, 2, (256, 176)).write_folder(tmp_path_factory.mktemp("drawn")).parent


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    script = load_example("create_small_model")
    script.main(script.parse_args(["--output_dir", str(folder)]))
    return folder


def test_the_autoencoder_starts_by_passing_colours_through(drawn, tmp_path):
    script = load_example("train_autoencoder")
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
    script = load_example("create_small_model")
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
    script = load_example("create_small_model")
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
    script = load_example("create_small_model")
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
    script = load_example("create_small_model")
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


def test_labels_cover_the_figure(drawn):
    script = load_example("pretrain_source_encoder")
    people = DrawnFigures(4, 2, (256, 176))
    shares = script.coverage(people.identity(0), people.pose(0, 0), (128, 96)) / 255
    assert shares.shape == (16, 12, len(script.PARTS))
    assert shares.sum(-1).min() > 0.95
    covered = dict(zip(script.PARTS, shares.mean((0, 1)), strict=True))
    assert 0.4 < covered["wall"] < 0.95
    assert covered["skin"] > 0.005
    assert covered["upper"] > 0.02


def test_alignment_maps_say_what_the_cells_show(drawn, tmp_path):
    script = load_example("write_alignment_maps")
    options = ["--train_data_dir", str(drawn), "--num_workers=1", "--output_dir"]
    script.main(script.parse_args([*options, str(tmp_path), "--maps", *script.MAPS]))
    names = json.loads((tmp_path / "names.json").read_text())
    assert names == sorted(f"images/{path.name}" for path in (drawn / "images").iterdir())
    maps = np.load(tmp_path / "maps.npy")
    sizes = (9 * 16, 18 * 4, 32 * 4, 2 * 8, 5 * 3, 3 * 16, 4 * 16, 1, 1)
    assert maps.shape == (8, sum(sizes), 16, 12)
    assert AlignmentMaps(tmp_path, drawn)([str(drawn / names[3])]).shape == (1, *maps.shape[1:])
    ends = np.cumsum(sizes)[:-1]
    groups = np.split(maps.astype(np.float32), ends, axis=1)
    shares, places, cloth_places, patterns, colors, contrasts, arms, weights, detail_weights = groups
    shares = shares.reshape(8, len(script.KINDS), 16, 16, 12)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-3)
    people = [DrawnFigures(4, 2, (256, 176)).identity(number) for number in range(4)]
    accents = shares[:, list(script.KINDS).index("upper_accent")].sum((1, 2, 3)).reshape(4, 2)
    # Of eight patterns the upper garment's first.
    is_pattern = patterns[:, :8].any((2, 3)).reshape(4, 2, 8)
    for number, person in enumerate(people):
        pattern = person.clothes.upper.pattern
        assert accents[number].any() == (pattern != "plain")
        assert (is_pattern[number] == [name == pattern for name in script.PATTERNS]).all()
    clothes = [script.KINDS.index(name) for name in script.CLOTHES]
    np.testing.assert_allclose(patterns.sum(1), shares[:, clothes].sum(1).mean(1), atol=2e-3)
    # Ground and accent of the upper garment, of the lower one, and what is below a jacket.
    for number, person in enumerate(people):
        upper = shares[2 * number, clothes[:2]].sum(0).mean(0)
        ground, accent = (colors[2 * number, 3 * index : 3 * index + 3] for index in (0, 1))
        np.testing.assert_allclose(
            ground, upper * np.array(person.clothes.upper.color)[:, None, None] / 255, atol=2e-3
        )
        if person.clothes.upper.pattern == "plain":
            np.testing.assert_array_equal(accent, ground)
        else:
            assert np.abs(accent - ground).max() > 0.1
        is_plain = person.clothes.upper.pattern == person.clothes.lower.pattern == "plain"
        assert contrasts[2 * number].any() != is_plain
    # Right skin, right sleeve, left skin, left sleeve.
    for row in range(8):
        parts = draw_arms(people[row // 2], DrawnFigures(4, 2, (256, 176)).pose(row // 2, row % 2), (128, 96))
        counts = [(parts == index).sum() / 4 for index in range(1, 5)]
        np.testing.assert_allclose(arms[row].reshape(4, -1).sum(1), counts, rtol=1e-3)
    # 1 on the wall, more for arms, 5 where there are clothes and no wall near.
    clothed = shares[:, [*clothes, script.KINDS.index("inner")]].sum(1).mean(1)
    wall = np.pad(shares[:, 0].mean(1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    walls = np.lib.stride_tricks.sliding_window_view(wall, (3, 3), axis=(1, 2)).sum((-1, -2))
    weights, arms = weights[:, 0], arms.sum(1) / 16
    assert (weights[(clothed == 0) & (arms == 0)] == 1).all()
    assert (weights >= 1 + 4 * arms - 1e-2).all()
    assert weights.max() <= 5
    inside = (clothed > 0.999) & (walls == 0)
    assert inside.sum() > 5
    np.testing.assert_allclose(weights[inside], 5, atol=1e-2)
    # 4 more in a garment that shows an accent, 8 more where it is open.
    more = detail_weights[:, 0] - weights
    shown = {name: shares[:, index].mean(1) for index, name in enumerate(script.KINDS)}
    expected = 8 * shown["inner"]
    for name in script.GARMENTS:
        accent = shown[f"{name}_accent"]
        expected += 4 * (shown[name] + accent) * (accent.sum((1, 2), keepdims=True) > 0)
    assert more[walls == 0].max() >= 4
    np.testing.assert_allclose(more[walls == 0], expected[walls == 0], atol=2e-2)
    assert (more >= 0).all()
    assert (more <= expected + 2e-2).all()
    # Sine and cosine where there are clothes, nothing elsewhere.
    places = places.reshape(8, 18, 4, 16, 12)
    lengths = np.hypot(places[:, 2], places[:, 3])
    is_clothed = lengths > 0.5
    assert 0.02 < is_clothed.mean() < 0.5
    np.testing.assert_allclose(lengths, is_clothed, atol=2e-3)
    np.testing.assert_allclose(places[:, -1], places[:, 5] * places[:, 7], atol=2e-3)
    # On the trunk both places agree; on limbs and skirts only those on the cloth follow these.
    cloth_places = cloth_places.reshape(8, 32, 4, 16, 12)
    upper = shares[:, [script.KINDS.index(name) for name in ("upper", "upper_accent")]].sum(1)
    trunk = (upper.min(1) > 0.99) & (arms < 0.01)
    assert trunk.sum() > 10
    difference = (cloth_places[:, :2] - places[:, :2]).transpose(0, 3, 4, 1, 2)
    assert np.median(np.abs(difference[trunk])) < 0.01
    assert np.abs(difference[is_clothed.any(1)]).max() > 0.1
    # The waves of its own period are of patterned cloth alone.
    for number, person in enumerate(people):
        is_patterned = {person.clothes.upper.pattern, person.clothes.lower.pattern} - {"plain", "block"}
        assert cloth_places[2 * number, 18:].any() == bool(is_patterned)
    own = cloth_places[:, 18:].reshape(8, 14, -1)
    np.testing.assert_array_less(np.hypot(own[:, 0], own[:, 1]), 1.01)
    # The first two people are there from an interrupted run.
    (tmp_path / "default").mkdir()
    figures = DrawnFigures(4, 2, (256, 176))
    begun = ResumableArrays(
        [tmp_path / "default" / "maps.npy"],
        [(8, int(ends[1]), 16, 12)],
        np.float16,
        [figures.settings, (128, 96), ["shares", "places"]],
    )
    for _ in range(4):
        begun.append(np.full((ends[1], 16, 12), 5), note_every=1)
    script.main(script.parse_args([*options, str(tmp_path / "default")]))
    written = np.load(tmp_path / "default" / "maps.npy")
    np.testing.assert_array_equal(written[:4], 5)
    np.testing.assert_array_equal(written[4:], maps[4:, : ends[1]])


@pytest.mark.parametrize("is_of_this_drawing", [True, False])
def test_labels_go_on_where_they_stopped_with_the_same_drawing(drawn, is_of_this_drawing):
    script = load_example("pretrain_source_encoder")
    options = ["--pretrained_model_name_or_path=x", "--output_dir=x", "--train_data_dir", str(drawn)]
    args = script.parse_args([*options, "--num_workers=1", "--poses_per_identity=2"])
    people = DrawnFigures.from_folder(drawn)
    script.load_pictures(args, people, (128, 96))
    files = sorted((drawn / "labels").iterdir(), reverse=True)
    assert [file.name.split("-")[0] for file in files] == ["pictures", "coverages"]
    for file in files:
        file.unlink()
    shapes = [(8, 128, 96, 3), (8, *script.coverage_shape((128, 96)))]
    settings = people.settings if is_of_this_drawing else {**people.settings, "drawing_version": 0}
    begun = ResumableArrays(files, shapes, np.uint8, settings)
    for _ in range(2):
        begun.append(*(np.full(shape[1:], 9) for shape in shapes), note_every=1)
    pictures, coverages = script.load_pictures(args, people, (128, 96))
    for array in (pictures, coverages):
        assert (array[:2] == 9).all() == is_of_this_drawing
        assert (array[2:].reshape(6, -1).std(1) > 0).all()
    for file in files:
        file.unlink()


@pytest.mark.parametrize(
    ("name", "checkpoints"), [("train_autoencoder", "checkpoint"), ("pretrain_source_encoder", "checkpoint-1")]
)
def test_broken_weights_leave_the_last_checkpoint_and_a_resumed_runs_own_rate_holds(
    start, drawn, tmp_path, monkeypatch, name, checkpoints
):
    script = load_example(name)
    options = ["--train_data_dir", str(drawn), "--output_dir", str(tmp_path), "--train_batch_size", "2"]
    options += ["--checkpointing_steps", "1"]
    if name == "pretrain_source_encoder":
        options += ["--pretrained_model_name_or_path", str(start), "--num_workers", "1", "--poses_per_identity", "2"]
        options += ["--num_test_identities", "1"]
    else:
        options += ["--lr_warmup_steps", "0", "--lr_scheduler", "constant"]
    script.main(script.parse_args([*options, "--max_train_steps", "1"]))
    files = {path: path.read_bytes() for path in (tmp_path / checkpoints).iterdir()}

    rates = []

    def breaking(self, parameters, *rest):
        parameters = list(parameters)
        rates.extend(group["lr"] for group in self._optimizers[0].param_groups)
        parameters[0].grad.fill_(float("nan"))

    monkeypatch.setattr(script.Accelerator, "clip_grad_norm_", breaking)
    again = [*options, "--max_train_steps", "2", "--resume_from_checkpoint", "latest", "--learning_rate", "1e-6"]
    with pytest.raises(SystemExit, match="The weights broke within 2 steps: go on at a lower rate from"):
        script.main(script.parse_args(again))
    assert max(rates) <= 1e-6
    assert {path: path.read_bytes() for path in (tmp_path / checkpoints).iterdir()} == files


def test_pretraining_changes_the_source_encoder_and_the_decoder_alone(start, drawn, tmp_path):
    script = load_example("pretrain_source_encoder")
    options = ["--pretrained_model_name_or_path", str(start), "--train_data_dir", str(drawn), "--num_workers", "1"]
    options += ["--output_dir", str(tmp_path), "--train_batch_size", "4", "--poses_per_identity", "2"]
    options += ["--num_test_identities", "1"]
    script.main(script.parse_args([*options, "--max_train_steps", "1"]))
    before, after = CFLDPipeline.from_pretrained(start), CFLDPipeline.from_pretrained(tmp_path)
    for part in ("source_encoder", "prompt_decoder", "appearance_encoder", "pose_adapter", "unet", "vae"):
        old, new = (getattr(pipe, part).state_dict() for pipe in (before, after))
        is_equal = all(torch.equal(old[name], new[name]) for name in old)
        assert is_equal == (part not in ("source_encoder", "prompt_decoder")), part
    with pytest.raises(SystemExit, match="--resume_from_checkpoint"):
        script.main(script.parse_args([*options, "--max_train_steps", "2"]))
    script.main(script.parse_args([*options, "--max_train_steps", "2", "--resume_from_checkpoint", "latest"]))
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    # Killed between the last checkpoint and the pipeline.
    weights = CFLDPipeline.from_pretrained(tmp_path).prompt_decoder.state_dict()
    shutil.rmtree(tmp_path / "prompt_decoder")
    script.main(script.parse_args([*options, "--max_train_steps", "2", "--resume_from_checkpoint", "latest"]))
    again = PerceptionRefinedDecoder.from_pretrained(tmp_path / "prompt_decoder").state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_labels_that_a_picture_does_not_show():
    script = load_example("pretrain_source_encoder")
    shares = torch.zeros(1, len(script.PARTS), 4, 4)
    shares[:, script.PARTS.index("upper")] = 1.0
    classes, seen = torch.ones(1, len(script.CLASSES), dtype=torch.int64), torch.ones(1, len(script.COLORS))
    classes, seen, lengths = script.visible_labels(shares, classes, seen)
    assert [name for name, value in zip(script.CLASSES, classes[0], strict=True) if value >= 0] == [
        "upper_pattern",
        "kind",
        "print",
        "upper_accent",
        "neckline",
    ]
    assert [name for name, value in zip(script.COLORS, seen[0], strict=True) if value] == [
        "upper",
        "upper_accent",
        "belt",
    ]
    assert {name for name, value in zip(script.LENGTHS, lengths[0], strict=True) if value} == {
        "upper_period",
        "sleeve",
        "hem",
        "sleeve_width",
        "ease",
        "shoulder",
        "waist",
        "breadth",
    }


def test_what_is_told_of_a_person_is_drawn_so():
    script = load_example("pretrain_source_encoder")
    people = DrawnFigures(300, 2, (256, 176))
    told = [script.describe(people.identity(number)) for number in range(300)]
    for index, name in enumerate(script.CLASSES):
        found = {classes[index] for _, classes, _, _ in told} - {-1}
        absent = {script.PATTERNS.index("block")} if name == "lower_pattern" else set()
        assert found == set(range(len(script.CLASSES[name]))) - absent, name
    lengths = np.array([lengths for *_, lengths in told])
    assert np.abs(lengths.mean(0)).max() < 0.3
    assert (lengths.std(0) > 0.7).all()
    assert (lengths.std(0) < 1.4).all()


def test_the_wrong_order_of_a_regular_pattern_costs_half():
    script = load_example("pretrain_source_encoder")
    colors = torch.rand(3, len(script.COLORS), 3)
    told = colors.clone()
    told[:, [2, 3]] = colors[:, [3, 2]]
    stripes, block = script.PATTERNS.index("horizontal"), script.PATTERNS.index("block")
    errors = script.color_errors(told, colors, torch.tensor([[stripes, 0], [block, 0], [0, 0]]))
    expected = (told - colors).square().mean(2)
    expected[0] /= 2
    assert torch.allclose(errors, expected)
    cells = script.color_errors(
        told[..., None, None].expand(-1, -1, -1, 2, 3), colors, torch.tensor([[stripes, 0]] * 3)
    )
    assert cells.shape == (3, len(script.COLORS), 2, 3)
    halved = (told - colors).square().mean(2) / 2
    assert torch.allclose(cells, halved[..., None, None].expand_as(cells))


def test_variants_of_pictures_keep_what_is_told_of_them():
    script = load_example("pretrain_source_encoder")
    pictures = torch.randint(256, (64, 16, 8, 3), dtype=torch.uint8)
    coverages = torch.randint(256, (64, 2, 1, len(script.PARTS)), dtype=torch.uint8)
    coverages = torch.cat([coverages, pictures[:, ::8, :1, :1].expand_as(coverages)], dim=2)
    labels = [pictures[:, 0, 0].float().repeat(1, len(script.COLORS)), torch.rand(64, 3)]
    varied, covered, told = script.vary(pictures, coverages, labels, torch.Generator().manual_seed(0))
    mirrored = varied.flip(2)
    is_mirrored = (covered != coverages).flatten(1).any(1)
    assert 16 < is_mirrored.sum() < 48
    back = torch.where(is_mirrored[:, None, None, None], mirrored, varied)
    assert torch.equal(back[:, 0, 0].float().repeat(1, len(script.COLORS)), told[0])
    assert torch.equal(back.sort(3).values, pictures.sort(3).values)
    assert 32 < (back == pictures).flatten(1).all(1).sum() < 56
    assert torch.equal(told[1], labels[1])


def test_prompts_keep_their_spread(start):
    script = load_example("pretrain_source_encoder")
    pipe = CFLDPipeline.from_pretrained(start)
    feature_map = torch.randn(2, 128, 8, 6)
    with torch.no_grad():
        script.scale_prompts(pipe.prompt_decoder, 100.0)  # of an untrained D they are as small as a norm's epsilon
        before = pipe.prompt_decoder(feature_map)
        script.scale_prompts(pipe.prompt_decoder, 0.25)
        after = pipe.prompt_decoder(feature_map)
    assert torch.allclose(after.prompt_embeds, 0.25 * before.prompt_embeds, rtol=1e-3, atol=1e-4)
    assert torch.equal(after.null_prompt_embeds, before.null_prompt_embeds)


def test_packing_and_measuring(start, tmp_path, capsys):
    script = load_example("pack_small_model")
    script.main(script.parse_args(["--model", str(start), "--output_dir", str(tmp_path / "packed")]))
    for file in (tmp_path / "packed").rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())
    assert CFLDPipeline.from_pretrained(tmp_path / "packed", variant="fp16").unet.dtype == torch.float32

    script = load_example("evaluate_small_model")
    options = ["--model", str(tmp_path / "packed"), "--variant", "fp16", "--num_pairs", "12", "--steps", "1"]
    options += ["--json", str(tmp_path / "table.json"), "--grid", str(tmp_path / "grid.png"), "--first_identity", "50"]
    script.main(script.parse_args(options))
    table = {row["row"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(table) == ["source copied", "autoencoder", "photo and pose", "another's photo", "another's pose"]
    assert table["autoencoder"]["psnr"] > table["source copied"]["psnr"] + 6 > table["photo and pose"]["psnr"]
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    assert "| source copied |" in capsys.readouterr().out
    script = load_example("measure_recognition")
    options = ["--model", str(tmp_path / "packed"), "--variant", "fp16", "--num_pairs", "2", "--steps", "1"]
    script.main(script.parse_args([*options, "--first_identity", "50"]))
    assert "| all of it | 4 | 0 % |" in capsys.readouterr().out


def test_what_is_recognised():
    load_example("evaluate_small_model")
    script = load_example("measure_recognition")
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
