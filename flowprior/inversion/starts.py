"""Starting images."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.inversion.warned import Warned


def range_warnings(start: Tensor | None) -> list[str]:
    """A warning of images that seem to be centred at 0, as those of data modules often are.

    Noisy data, which may also be a start, are on both sides of [0, 1], or nearly so.
    """
    if start is None:
        return []
    low, high = float(start.min()), float(start.max())
    if low >= -0.2 or low + high >= 0.3:
        return []
    reason = (
        f"start goes from {low:.2g} to {high:.2g}, but images are in [0, 1]: if they are in the "
        "range of a flow, flow.to_unit_range(start) moves them there"
    )
    return [Warned(reason, "start_range")]


def smoothed(x: Tensor, deviation: float = 5.0) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian of this deviation in pixels, with mirrored borders.

    The start of a tomography, after Li & Denli (2021), section 4.2. Made from the truth it gives
    part of the answer away; in practice it needs a model that is known beforehand.
    """
    check_types(smoothed, locals())
    if not 0 < deviation < float("inf"):
        raise ValueError(f"deviation must be positive and finite, got {deviation}")
    from scipy.ndimage import gaussian_filter

    sigmas = (0, 0, deviation, deviation)
    return torch.from_numpy(gaussian_filter(x.detach().cpu().numpy(), sigmas)).to(x)
