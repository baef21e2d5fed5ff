"""Formulas and parts of CFLD's training; the loop around them is `examples/pose_transfer/train_cfld.py`."""

from .condition_dropout import Conditions as Conditions
from .condition_dropout import drop_conditions as drop_conditions
from .condition_dropout import sample_condition_drop_mask as sample_condition_drop_mask
from .latent_cache import LatentCache as LatentCache
from .latent_cache import digest_weights as digest_weights
from .latent_cache import encode_moments as encode_moments
from .latent_cache import sample_latents as sample_latents
from .latent_metric import pixel_metric as pixel_metric
from .lr_schedule import LEARNING_RATE_PER_PAIR as LEARNING_RATE_PER_PAIR
from .lr_schedule import PUBLISHED_LEARNING_RATE as PUBLISHED_LEARNING_RATE
from .lr_schedule import learning_rate_factor as learning_rate_factor
from .lr_schedule import learning_rate_lambda as learning_rate_lambda
from .lr_schedule import scaled_learning_rate as scaled_learning_rate
from .lr_schedule import set_learning_rates as set_learning_rates
from .muon import Muon as Muon
from .objective import DoubledBatch as DoubledBatch
from .objective import cfld_loss as cfld_loss
from .objective import double_batch as double_batch
from .objective import min_snr_weights as min_snr_weights
from .objective import prediction_target as prediction_target
from .objective import repeat_appearance as repeat_appearance
from .optimization import check_trainable_dtype as check_trainable_dtype
from .optimization import parameter_groups as parameter_groups
from .optimization import set_unet_trainable as set_unet_trainable
from .optimization import trainable_parameters as trainable_parameters
from .pair_randomness import PairRandomness as PairRandomness
from .pair_randomness import sample_pair_randomness as sample_pair_randomness
from .picture_maps import AlignmentMaps as AlignmentMaps
from .picture_maps import LossWeightMaps as LossWeightMaps
from .picture_maps import PictureMaps as PictureMaps
from .sampling import cubic_timesteps as cubic_timesteps
from .sampling import sample_timesteps_cubic as sample_timesteps_cubic
from .sampling import sample_timesteps_uniform as sample_timesteps_uniform
from .sampling import uniform_timesteps as uniform_timesteps
from .training_module import CFLDTrainingModule as CFLDTrainingModule

__all__ = [
    "LEARNING_RATE_PER_PAIR",
    "PUBLISHED_LEARNING_RATE",
    "AlignmentMaps",
    "CFLDTrainingModule",
    "Conditions",
    "DoubledBatch",
    "LatentCache",
    "LossWeightMaps",
    "Muon",
    "PairRandomness",
    "PictureMaps",
    "cfld_loss",
    "check_trainable_dtype",
    "cubic_timesteps",
    "digest_weights",
    "double_batch",
    "drop_conditions",
    "encode_moments",
    "learning_rate_factor",
    "learning_rate_lambda",
    "min_snr_weights",
    "parameter_groups",
    "pixel_metric",
    "prediction_target",
    "repeat_appearance",
    "sample_condition_drop_mask",
    "sample_latents",
    "sample_pair_randomness",
    "sample_timesteps_cubic",
    "sample_timesteps_uniform",
    "scaled_learning_rate",
    "set_learning_rates",
    "set_unet_trainable",
    "trainable_parameters",
    "uniform_timesteps",
]
