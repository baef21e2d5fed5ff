"""The model card of a CFLD pipeline: what the weights are, where they came from and what they may be used for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from .._version import __version__
from ..image_utils import unsquash_size

if TYPE_CHECKING:
    from ..conversion.weights_io import SourceFile

STABLE_DIFFUSION_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"

_BODY = """\
# CFLD: pose-guided person image synthesis

Give it one photo of a person and a target pose, get that person in that pose. This is Coarse-to-Fine Latent Diffusion
([CVPR 2024](https://arxiv.org/abs/2402.18078), [official code](https://github.com/YanzuoLu/CFLD)) as a pipeline of
🧨 diffusers, {origin} with `diffusers-cfld` {version}.

## Model

A Swin Transformer reads the photo; a decoder turns its coarsest features into a prompt of {num_queries} tokens that
takes the place of the text, an appearance encoder turns the finer ones into biases on the queries of the U-Net's
cross-attentions, and a pose adapter adds the target pose to the U-Net's features.

{base_line}- **Resolution:** the source image is read at {source_height}x{source_width} (height x width), the result
  is made at {target_height}x{target_width}. The field reports its results after resizing to 256x176 or 512x352.
- **Pose:** 18 keypoints in OpenPose order (nose, neck, right shoulder, elbow, wrist, left shoulder, elbow, wrist,
  right hip, knee, ankle, left hip, knee, ankle, right eye, left eye, right ear, left ear); right and left are the
  person's own, a missing joint is -1.{dtype_line}

## How to use

```bash
pip install diffusers-cfld
```

```python
import torch
from diffusers_cfld import CFLDPipeline

pipe = CFLDPipeline.from_pretrained("{location}"{load_options}, dtype=torch.float16).to("cuda")
image = pipe(image=photo, pose=keypoints, num_inference_steps=50, guidance_scale=2.0{shape_options}).images[0]
```

`photo` is a PIL image, `keypoints` are those above.{shape_line} {scheduler_line}
{provenance}
{about_weights}
## Citation

```bibtex
@inproceedings{{lu2024coarse,
  title     = {{Coarse-to-Fine Latent Diffusion for Pose-Guided Person Image Synthesis}},
  author    = {{Lu, Yanzuo and Zhang, Manlin and Ma, Andy J and Xie, Xiaohua and Lai, Jianhuang}},
  booktitle = {{Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition}},
  year      = {{2024}}
}}
```
"""

_STRETCHED = " Without `output_size` people come out stretched, as the model sees them."

_CONSENT = """\
- The result shows a person's likeness doing what they did not do. Get the consent of whoever is in the photo, say that
  the image is synthetic, and do not use it to deceive, harass, undress or impersonate anyone, nor to identify people.
"""

_BASE_LINE = """\
- **Base model:** Stable Diffusion 1.5 (`{base_model}`): VAE as it is, U-Net with
  trained keys and values in the up blocks' cross-attentions.
"""

_ABOUT_PUBLISHED = f"""\
What follows is about the authors' published weights. For a checkpoint of another training, with other data or from
another base model, say instead what holds for it.

## Licences

- Stable Diffusion 1.5: [CreativeML OpenRAIL-M](https://huggingface.co/spaces/CompVis/stable-diffusion-license). Its
  use restrictions hold for these weights too.
- CFLD's code: MIT.
- DeepFashion, the training data of the published weights: research only, non-commercial. Weights that were trained on
  it should be used likewise.

## Intended use

Research on person image synthesis: reposing fashion photos, virtual dressing, data augmentation.

## Limits and misuse

- Trained on studio photos of fashion models before plain backgrounds: other people, backgrounds, crops and poses are
  out of its domain, and body shapes, skin tones and clothes that DeepFashion shows seldom come out worse.
- Faces, hands, logos and fine patterns are not kept exactly; left and right of a garment may be swapped.
{_CONSENT}
## Evaluation

Not measured with this conversion. The released weights do not give the paper's table: at 256x176 a user measured FID
6.676, LPIPS 0.1705, SSIM 0.6993, PSNR 17.617 (issue 37 of the official repository), the paper reports 6.804, 0.1519,
0.7378, 18.235, from an earlier epoch according to its author (issue 27). These FIDs follow the field's own protocol
and compare with no other FID.
"""

_ABOUT_OWN = f"""\
## Licences, intended use, evaluation

Not written yet: say what the weights were trained on, under which licences they and the data are, what they may be
used for, and what was measured. CFLD's code is MIT.

## Limits and misuse

- Photos, people and poses unlike those of the training come out worse. Faces, hands, logos and fine patterns are not
  kept exactly.
{_CONSENT}"""


def create_model_card(
    *,
    base_model: str | None = STABLE_DIFFUSION_ID,
    source_files: Sequence[SourceFile] = (),
    location: str = "path/to/this/folder",
    source_size: tuple[int, int] = (256, 256),
    target_size: tuple[int, int] = (512, 512),
    image_shape: tuple[int, int] | None = (256, 176),
    num_queries: int = 16,
    dtype: str | None = None,
    variant: str | None = None,
    scheduler: str | None = None,
) -> ModelCard:
    """Compose the card.

    Args:
        base_model: Hub id of the Stable Diffusion 1.5 whose VAE and U-Net architecture are used, by a converted
            checkpoint; None for a model of whose weights, data and licences the card is to claim nothing.
        source_files: The published files that were converted; none for weights of one's own training.
        location: What to pass to `from_pretrained`: a Hub id or a folder.
        source_size: (height, width) in pixels at which the source image is read.
        target_size: (height, width) in pixels at which images are made.
        image_shape: (height, width) with the aspect ratio of the photos of the training; None if they had many.
        num_queries: Tokens of the prompt.
        dtype: Number format of the weights, if worth saying.
        variant: Variant in the weights' file names.
        scheduler: Class of the scheduler that is saved.

    Returns:
        The card with its YAML front matter.
    """
    of_base: dict[str, Any] = {}
    if base_model is not None:
        of_base = {
            "base_model": base_model,
            "license": "other",
            "license_name": "creativeml-openrail-m-non-commercial",
            "license_link": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        }
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers", "diffusers-cfld", "pose-transfer", *(["stable-diffusion"] if base_model else [])],
        **of_base,
    )
    shape_options = output_size_option(target_size, image_shape)
    body = _BODY.format(
        shape_options=shape_options,
        shape_line=_STRETCHED if shape_options else "",
        origin="converted from a checkpoint in the published layout" if source_files else "saved",
        version=__version__,
        num_queries=num_queries,
        base_line=_BASE_LINE.format(base_model=base_model) if base_model else "",
        about_weights=_ABOUT_PUBLISHED if base_model else _ABOUT_OWN,
        source_height=source_size[0],
        source_width=source_size[1],
        target_height=target_size[0],
        target_width=target_size[1],
        dtype_line=f"\n- **Weights:** {dtype}." if dtype else "",
        scheduler_line=f"The scheduler is `{scheduler}`; any of diffusers can take its place." if scheduler else "",
        location=location,
        load_options=f', variant="{variant}"' if variant else "",
        provenance=_describe_source(source_files),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def write_model_card(folder: str | Path, **facts: Any) -> Path:
    """Write the card as `README.md`.

    Args:
        folder: Where to write it: an existing folder, as a rule the pipeline's.
        **facts: Arguments of [`create_model_card`].

    Returns:
        The file that was written.

    Raises:
        OSError: It cannot be written.
    """
    card = create_model_card(**facts)
    path = Path(folder) / "README.md"
    path.write_text(card.content, encoding="utf-8")
    return path


def output_size_option(target_size: tuple[int, int], image_shape: tuple[int, int] | None) -> str:
    """Write the option of a call in a card's snippet that gives results the photos' shape.

    Args:
        target_size: (height, width) in pixels at which images are made.
        image_shape: (height, width) with the aspect ratio of the photos of the training; None if they had many.

    Returns:
        `, output_size=(height, width)`, or nothing where results have that shape already, or the photos had many.
    """
    if image_shape is None or unsquash_size(target_size, image_shape) == target_size:
        return ""
    return f", output_size={unsquash_size(target_size, image_shape)}"


def _describe_source(source_files: Sequence[SourceFile]) -> str:
    if not source_files:
        return ""
    rows = "\n".join(f"| `{file.name}` | {file.size:,} | `{file.sha256}` |" for file in source_files)
    return f"""
## Source

Converted with `diffusers-cfld` {__version__} from:

| file | bytes | sha256 |
|---|---|---|
{rows}
"""
