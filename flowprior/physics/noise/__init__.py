"""Noise models: each one draws the noise of data and gives the misfit that follows from it."""

from flowprior.physics.noise.band_limited import BandLimited
from flowprior.physics.noise.base import Noise
from flowprior.physics.noise.contaminated import Contaminated
from flowprior.physics.noise.draws import standard_normal
from flowprior.physics.noise.laplace import Laplace
from flowprior.physics.noise.normal import SNR, Gaussian, Relative
from flowprior.physics.noise.poisson import Poisson

__all__ = [
    "SNR",
    "BandLimited",
    "Contaminated",
    "Gaussian",
    "Laplace",
    "Noise",
    "Poisson",
    "Relative",
    "standard_normal",
]
