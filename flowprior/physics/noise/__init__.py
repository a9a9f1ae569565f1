"""Noise models: each one draws the noise of data and gives the misfit that follows from it."""

from torch import Tensor

from flowprior.physics.noise.base import Noise
from flowprior.physics.noise.draws import Indices, standard_normal
from flowprior.physics.noise.laplace import Laplace
from flowprior.physics.noise.normal import SNR, Gaussian, Relative, Scale
from flowprior.physics.noise.poisson import Poisson

__all__ = [
    "SNR",
    "Gaussian",
    "Laplace",
    "Noise",
    "Poisson",
    "Relative",
    "gaussian_noise",
    "noise_for_snr",
    "relative_noise",
    "standard_normal",
]


def gaussian_noise(
    y: Tensor, sigma: float, *, seed: int, indices: Indices, scale: Scale = "data"
) -> Tensor:
    """`Gaussian(sigma, scale).add(y, ...)`."""
    return Gaussian(sigma, scale).add(y, seed=seed, indices=indices)


def relative_noise(y: Tensor, sigma: float, *, seed: int, indices: Indices) -> Tensor:
    """`Relative(sigma).add(y, ...)`."""
    return Relative(sigma).add(y, seed=seed, indices=indices)


def noise_for_snr(
    y: Tensor, snr_db: float, *, seed: int, indices: Indices, observed: Tensor | None = None
) -> Tensor:
    """`SNR(snr_db).add(y, ...)`."""
    return SNR(snr_db).add(y, seed=seed, indices=indices, observed=observed)
