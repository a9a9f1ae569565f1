"""Forward operators and noise models."""

from importlib import import_module
from typing import Any

from flowprior.physics.noise import (
    SNR,
    Gaussian,
    Laplace,
    Noise,
    Poisson,
    Relative,
    gaussian_noise,
    noise_for_snr,
    relative_noise,
)

# The operators stand on deepinv, which takes seconds to import: imported when first asked for.
_OPERATOR_NAMES = [
    "OPERATORS",
    "EikonalTomography",
    "box_inpainting",
    "cartesian_mri",
    "colourisation",
    "crosshole",
    "denoising",
    "gaussian_blur",
    "limited_angle_ct",
    "make_operator",
    "mean_blur",
    "random_gaussian",
    "random_inpainting",
    "super_resolution",
]

__all__ = [
    *_OPERATOR_NAMES,
    "SNR",
    "Gaussian",
    "Laplace",
    "Noise",
    "Poisson",
    "Relative",
    "gaussian_noise",
    "noise_for_snr",
    "relative_noise",
]


def __getattr__(name: str) -> Any:
    if name not in _OPERATOR_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.operators"), name)
