"""Convert the published CFLD checkpoint to a diffusers folder and back, and Swin weights to a source encoder."""
