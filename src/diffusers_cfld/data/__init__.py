"""Pairs of images and keypoints for training: `load_pairs` lists them, and `PosePairDataset` reads them."""

from .dataset import ImageDataset as ImageDataset
from .dataset import PairTransform as PairTransform
from .dataset import PosePairDataset as PosePairDataset
from .dataset import collate_pose_pairs as collate_pose_pairs
from .dataset import first_readable as first_readable
from .dataset import init_worker as init_worker
from .dataset import read_padded as read_padded
from .dataset import unique_images as unique_images
from .pairs import PosePair as PosePair
from .pairs import load_deepfashion_pairs as load_deepfashion_pairs
from .pairs import load_folder_pairs as load_folder_pairs
from .pairs import load_market1501_pairs as load_market1501_pairs
from .pairs import load_pairs as load_pairs
from .pairs import read_image as read_image
from .pairs import read_image_size as read_image_size
from .skip_report import MAX_IN_A_ROW as MAX_IN_A_ROW
from .skip_report import SkipReport as SkipReport
from .skip_report import UnreadableDataError as UnreadableDataError
from .skip_report import UnreadableImageError as UnreadableImageError
