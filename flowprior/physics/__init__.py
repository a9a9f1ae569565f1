"""Forward operators and noise; linear operators and eikonal travel times are deepinv physics."""

from importlib import import_module
from typing import Any

# deepinv takes seconds to import: a name is looked up when it is first asked for.
_MODULES = {
    "EikonalTomography": "eikonal",
    "OPERATORS": "operators",
    "box_inpainting": "operators",
    "cartesian_mri": "operators",
    "colourisation": "operators",
    "crosshole": "eikonal",
    "denoising": "operators",
    "gaussian_blur": "operators",
    "gaussian_noise": "noise",
    "limited_angle_ct": "operators",
    "make_operator": "operators",
    "mean_blur": "operators",
    "noise_for_snr": "noise",
    "random_gaussian": "operators",
    "random_inpainting": "operators",
    "relative_noise": "noise",
    "super_resolution": "operators",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
