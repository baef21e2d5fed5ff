"""Conversion between the published CFLD checkpoint and diffusers folders, both ways, and of Swin weights."""
