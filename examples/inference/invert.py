"""DDIM inversion: find the noise that gives an image back, and see what else that noise gives."""

from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.inversion import invert, reconstruct
from diffusers_cfld.small_model import example_poses, example_source_poses, example_sources, load_small_model

pipe = load_small_model()
image, other = example_sources()[:2]
pose = example_source_poses()[0]
latents = invert(pipe, image, pose, num_inference_steps=50)
cases = {
    "reconstructed": {"image": image, "pose": pose},
    "other appearance": {"image": other, "pose": pose},
    "other pose": {"image": image, "pose": example_poses()[0]},
}
results = [reconstruct(pipe, latents, **case).images[0] for case in cases.values()]
pixels = pipe.image_processor.preprocess(image, *pipe.target_size)
decoded = pipe.image_processor.postprocess(pipe.vae(pixels).sample.detach())[0].resize(image.size)  # the best possible
labels = ["image", "autoencoder alone", "reconstructed", "other source", "other appearance", "other pose"]
contact_sheet([[image, decoded, results[0], other, *results[1:]]], [labels]).save("invert.png")
