"""Normalizing flows: the `Flow` interface and its implementations.

Importing this switches TF32 off in cuDNN's convolutions, which torch has on by default: it carries
three digits, and a trained flow would not come back to its images.
"""

import torch

from flowprior.flows.base import Flow, standard_normal_log_prob
from flowprior.flows.coupling1x1 import Coupling1x1Flow
from flowprior.flows.glow import Glow
from flowprior.flows.hint import ConditionalHint
from flowprior.flows.trumpet import Trumpet

torch.backends.cudnn.allow_tf32 = False

__all__ = [
    "ConditionalHint",
    "Coupling1x1Flow",
    "Flow",
    "Glow",
    "Trumpet",
    "standard_normal_log_prob",
]
