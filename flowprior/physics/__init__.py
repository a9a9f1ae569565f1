"""Forward operators and noise models."""

from importlib import import_module
from typing import Any

from flowprior.physics.calls import count_calls
from flowprior.physics.condition import Condition, GaussianEstimate, MigratedData, ScaledData
from flowprior.physics.noise import (
    SNR,
    BandLimited,
    Contaminated,
    Gaussian,
    Laplace,
    Noise,
    Poisson,
    Relative,
)

# Operators stand on deepinv, which takes seconds to import: they are imported when first asked for.
_MODULES = {
    "born": ["LinearizedBorn", "linearized_born"],
    "by_name": ["OPERATORS", "find_operator", "make_operator"],
    "eikonal": ["EikonalTomography", "crosshole"],
    "linear": ["AboutGrey"],
    "operators": [
        "box_inpainting",
        "cartesian_mri",
        "colourisation",
        "denoising",
        "gaussian_blur",
        "limited_angle_ct",
        "mean_blur",
        "phase_retrieval",
        "random_gaussian",
        "random_inpainting",
        "super_resolution",
    ],
    "waveforms": ["FullWaveform", "full_waveform"],
}

__all__ = [
    *(name for names in _MODULES.values() for name in names),
    "SNR",
    "BandLimited",
    "Condition",
    "Contaminated",
    "Gaussian",
    "GaussianEstimate",
    "Laplace",
    "MigratedData",
    "Noise",
    "Poisson",
    "Relative",
    "ScaledData",
    "count_calls",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
