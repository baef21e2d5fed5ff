"""Formulas and parts of CFLD's training; the training loop is in `examples/pose_transfer/train_cfld.py`."""

from .latent_cache import LatentCache as LatentCache
from .latent_cache import encode_moments as encode_moments
from .latent_cache import sample_latents as sample_latents
from .objective import Conditions as Conditions
from .objective import cfld_loss as cfld_loss
from .objective import drop_conditions as drop_conditions
from .objective import loss_terms as loss_terms
from .optimization import LEARNING_RATE_PER_PAIR as LEARNING_RATE_PER_PAIR
from .optimization import PUBLISHED_LEARNING_RATE as PUBLISHED_LEARNING_RATE
from .optimization import get_cfld_schedule as get_cfld_schedule
from .optimization import scaled_learning_rate as scaled_learning_rate
from .optimization import set_unet_trainable as set_unet_trainable
from .optimization import trainable_parameters as trainable_parameters
from .sampling import PairRandomness as PairRandomness
from .sampling import cubic_timesteps as cubic_timesteps
from .sampling import sample_pair_randomness as sample_pair_randomness
from .training_module import CFLDTrainingModule as CFLDTrainingModule
