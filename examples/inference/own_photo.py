"""Any photo, cropped to the person, and a pose aligned to the body: `python own_photo.py [PHOTO KEYPOINTS MODEL]`.

Without arguments it shows how a photo of NASA's (pip install scikit-image) is prepared. The result takes a model of
photos: the small one of this package only knows drawn figures.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from skimage.data import astronaut

from diffusers_cfld import CFLDPipeline, Keypoints, align_pose, fit_photo
from diffusers_cfld.inspection import contact_sheet
from diffusers_cfld.small_model import example_poses

paths = sys.argv[1:3] or [None, Path(__file__).with_name("astronaut_pose.json")]
photo = Image.open(paths[0]) if paths[0] else Image.fromarray(astronaut())
fitted = fit_photo(photo, Keypoints.load(paths[1], size=(photo.height, photo.width)))
pose = example_poses()[2]
aligned = align_pose(pose, fitted.keypoints)
drawings = [pose.draw(), fitted.keypoints.draw(background=fitted.image), aligned.draw(background=fitted.image)]
images = [ImageOps.pad(one, (176, 256), color="white") for one in (photo, *drawings)]
labels = ["photo", "target pose", "fitted to the person", "target on this body"]
if len(sys.argv) > 3:
    pipe = CFLDPipeline.from_pretrained(sys.argv[3])
    images += pipe(image=fitted.image, pose=aligned, generator=torch.manual_seed(0)).images
    labels.append("result")
contact_sheet([images], [labels]).save("own_photo.png")
