"""Check an installation without weights: build a small untrained pipeline, save it, and run the command line with it.

The picture is noise. It shows that everything works, what goes in, and where the result comes out.
"""

import PIL.Image
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from skimage import data

from diffusers_cfld import (
    AppearanceEncoder,
    CFLDPipeline,
    Keypoints,
    PerceptionRefinedDecoder,
    PoseAdapter,
    SwinImageEncoder,
)
from diffusers_cfld.cli import main

widths = (32, 64, 128, 128)
blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
torch.manual_seed(0)
pipe = CFLDPipeline(  # the published geometry at a quarter of its size
    vae=AutoencoderKL(block_out_channels=(16, 16, 16, 16), norm_num_groups=8, sample_size=128, **blocks),
    unet=UNet2DConditionModel(sample_size=16, block_out_channels=widths, cross_attention_dim=48),
    scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
    source_encoder=SwinImageEncoder(image_size=64, window_size=4, embed_dim=16, num_heads=(1, 2, 4, 8)),
    prompt_decoder=PerceptionRefinedDecoder(4, 48, num_attention_heads=3, feature_channels=128, feature_size=2),
    appearance_encoder=AppearanceEncoder((16, 32, 64), (16, 32, 64), (32, 64, 128), (1, 2, 4)),
    pose_adapter=PoseAdapter(block_out_channels=widths[:3]),
)
pipe.save_pretrained("untrained-cfld")
photo = PIL.Image.fromarray(data.astronaut())  # public domain, NASA
photo.save("untrained-cfld/photo.png")
pose_file = f"{__file__.rpartition('/')[0] or '.'}/astronaut_pose.json"
command = ["generate", "--model", "untrained-cfld", "--image", "untrained-cfld/photo.png", "--pose", pose_file]
status = main([*command, "--output", "untrained-cfld/result.png", "--steps", "10", "--seed", "0"])
if status == 0:
    pictures = [photo, Keypoints.load(pose_file).draw(), PIL.Image.open("untrained-cfld/result.png")]
    grid = PIL.Image.new("RGB", (3 * 256, 256))
    for column, picture in enumerate(pictures):
        grid.paste(picture.resize((256, 256)), (256 * column, 0))
    grid.save("untrained.png")
    print("Source, pose and the untrained model's result: untrained.png")
raise SystemExit(status)
