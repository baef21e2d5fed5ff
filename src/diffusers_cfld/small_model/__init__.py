"""A small trained model that comes with the package, and drawn people to try it on.

It knows only the drawn figures of `examples/small_model` and is for first steps, examples and tests.
`pipeline/README.md` beside this file is its model card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image

    from ..pipelines.pipeline_cfld import CFLDPipeline
    from ..pose.keypoints import Keypoints

_HERE = Path(__file__).parent

SMALL_MODEL = _HERE / "pipeline"
"""Folder of the pipeline, for `from_pretrained(SMALL_MODEL, variant="fp16")`; the default of `--model`."""

SAMPLING_OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.5}
"""Arguments for the call that suit this model. Lower values give images closer to the truth, but blurred."""


def load_small_model(**kwargs: Any) -> CFLDPipeline:
    """Load the model from the installed package, without the network.

    Args:
        **kwargs: Passed on to `CFLDPipeline.from_pretrained`, e.g. `dtype`.

    Returns:
        A pipeline on the CPU that makes images of 128x96 (height x width) pixels.
    """
    from ..pipelines.pipeline_cfld import CFLDPipeline

    return CFLDPipeline.from_pretrained(SMALL_MODEL, **{"variant": "fp16", "local_files_only": True, **kwargs})


def example_sources() -> list[PIL.Image.Image]:
    """Open images of drawn people that the model was not trained on.

    Returns:
        RGB images of 256x176 (height x width) pixels.
    """
    import PIL.Image

    paths = sorted((_HERE / "examples").glob("source-*.png"))
    return [PIL.Image.open(path).convert("RGB") for path in paths]


def example_source_poses() -> list[Keypoints]:
    """Read the poses of the people in [`example_sources`].

    Returns:
        Keypoints on images of 256x176 (height x width), in whole pixels.
    """
    return _read_poses("source_poses.json")


def example_poses() -> list[Keypoints]:
    """Read poses of drawn people that the model was not trained on.

    Returns:
        Keypoints on images of 256x176 (height x width) pixels.
    """
    return _read_poses("poses.json")


def _read_poses(name: str) -> list[Keypoints]:
    from ..pose.keypoints import Keypoints

    entries = json.loads((_HERE / "examples" / name).read_text(encoding="utf-8"))
    return [Keypoints.from_any(entry) for entry in entries]
