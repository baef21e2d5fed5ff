"""Pictures and keypoints to train and test with.

`load_pairs` reads what pairs a data set has, `PosePairDataset` makes training examples of them; `write_shards` and
`StreamedPosePairs` are for data that does not fit on one disk.
"""

from .dataset import PictureDataset as PictureDataset
from .dataset import PosePairDataset as PosePairDataset
from .dataset import collate_pose_pairs as collate_pose_pairs
from .dataset import init_worker as init_worker
from .dataset import unique_images as unique_images
from .pair_transform import PairTransform as PairTransform
from .pair_transform import PosePair as PosePair
from .pairs import load_deepfashion_pairs as load_deepfashion_pairs
from .pairs import load_folder_pairs as load_folder_pairs
from .pairs import load_market1501_pairs as load_market1501_pairs
from .pairs import load_pairs as load_pairs
from .shards import SHARD_INDEX as SHARD_INDEX
from .shards import write_shards as write_shards
from .skip_report import SkipReport as SkipReport
from .skip_report import UnreadableDataError as UnreadableDataError
from .streamed_pairs import StreamedPosePairs as StreamedPosePairs

__all__ = [
    "SHARD_INDEX",
    "PairTransform",
    "PictureDataset",
    "PosePair",
    "PosePairDataset",
    "SkipReport",
    "StreamedPosePairs",
    "UnreadableDataError",
    "collate_pose_pairs",
    "init_worker",
    "load_deepfashion_pairs",
    "load_folder_pairs",
    "load_market1501_pairs",
    "load_pairs",
    "unique_images",
    "write_shards",
]
