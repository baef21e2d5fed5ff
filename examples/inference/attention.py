"""What the queries look at (Fig. 7): in the source (prompt decoder), and in the result (the U-Net's biased layers)."""

import torch

from diffusers_cfld.inspection import contact_sheet, draw_heat_map, prompt_attention_maps, record_attention
from diffusers_cfld.small_model import example_poses, example_sources, load_small_model

pipe = load_small_model()
photo = example_sources()[1]
source_maps = prompt_attention_maps(pipe, photo)[0, 0]  # (queries, h, w), first block
with record_attention(pipe) as recorder:
    result = pipe(
        image=photo,
        pose=example_poses()[0],
        num_inference_steps=20,
        generator=torch.manual_seed(0),
    ).images[0]
result_maps = recorder.mean_maps()[0]
queries = source_maps.flatten(1).amax(dim=1).argsort(descending=True)[:8].tolist()  # those with the highest peaks
rows = [
    [photo, *(draw_heat_map(photo, source_maps[query]) for query in queries)],
    [result, *(draw_heat_map(result, result_maps[query]) for query in queries)],
]
labels = [[name, *(f"query {query}" for query in queries)] for name in ("source", "result")]
contact_sheet(rows, labels).save("attention.png")
