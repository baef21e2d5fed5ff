#!/usr/bin/env bash
# What CFLD costs on one GPU: results first, then the tables, in less than 8 minutes.
#
#     bash benchmarks/gpu.sh [FOLDER]       # for the figures, `gpu_figures` by default
#
# PYTHON chooses the interpreter; DEVICE=cpu SIZE=small tries the script without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} device=${DEVICE:-cuda} size=${SIZE:-published} folder=${1:-gpu_figures}
mkdir -p "$folder"

"$python" - "$device" <<'PYTHON'
import sys

import torch

from diffusers_cfld.small_model import example_poses, example_sources, load_small_model

device = sys.argv[1]
torch.backends.cudnn.allow_tf32 = False  # of matrix products it is off by default
images = {}
for place, dtype in (("cpu", torch.float32), *((device, t) for t in (torch.float32, torch.float16, torch.bfloat16))):
    pipe = load_small_model().to(place, dtype)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, pipe.unet.config.in_channels, 16, 12, generator=torch.manual_seed(0))
    call = {"image": example_sources()[0], "pose": example_poses()[0], "latents": noise, "output_type": "pt"}
    call |= {"num_inference_steps": 4, "guidance_scale": 1.5}
    images[place, dtype] = pipe(**call).images.float().cpu()
expected = images["cpu", torch.float32]
for (place, dtype), image in images.items():
    difference = (image - expected).abs().max().item()
    print(f"{place}, {dtype}: differs from the CPU's image by {difference:.1e}")
    assert difference < {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.3}[dtype]
PYTHON

measure() { "$python" benchmarks/run.py --device "$device" "$@"; }
measure --size small --rounds 3 --json "$folder/small.json" \
    --rows "denoising|options: (compile_repeated_blocks$|channels)|parts: (VAE|pose)"
measure --size "$size" --dtype float16 --steps 4 --rounds 3 --json "$folder/float16.json" \
    --rows "denoising|options: (channels|compile|fuse|sdpa)|growth: (batch|4 poses)|parts: (source|pose adapter|VAE)"
measure --size "$size" --dtype bfloat16 --steps 4 --rounds 3 --json "$folder/bfloat16.json" \
    --rows "denoising|options: channels"
