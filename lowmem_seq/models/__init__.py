"""Sequencer2D and its baseline: image classifiers that take channels-last images and draw no random numbers.

Nothing in this room knows data or training.
"""

from lowmem_seq.models.bilstm2d import BiLSTM2D
from lowmem_seq.models.noise import Noise
from lowmem_seq.models.presets import ImageClassifier, build_model, create_model, parameter_count
from lowmem_seq.models.sequencer2d import Sequencer2D
from lowmem_seq.models.timm_weights import (
    from_timm_state_dict,
    is_timm_state_dict,
    load_timm_state_dict,
    to_timm_state_dict,
)
from lowmem_seq.models.vanilla import VanillaBiLSTM

__all__ = [
    "BiLSTM2D",
    "ImageClassifier",
    "Noise",
    "Sequencer2D",
    "VanillaBiLSTM",
    "build_model",
    "create_model",
    "from_timm_state_dict",
    "is_timm_state_dict",
    "load_timm_state_dict",
    "parameter_count",
    "to_timm_state_dict",
]
