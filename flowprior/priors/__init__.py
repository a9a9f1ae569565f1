"""Priors: generators x = G(z), z ~ N(0, I), and their other capabilities."""

from flowprior.priors.base import CAPABILITIES, Prior, require
from flowprior.priors.cropped import Cropped
from flowprior.priors.foreign import from_normflows, from_zuko
from flowprior.priors.gaussian import GaussianPrior
from flowprior.priors.module import Module
from flowprior.priors.padded import Padded

__all__ = [
    "CAPABILITIES",
    "Cropped",
    "GaussianPrior",
    "Module",
    "Padded",
    "Prior",
    "from_normflows",
    "from_zuko",
    "require",
]
