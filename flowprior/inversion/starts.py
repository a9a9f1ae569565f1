"""Starting images."""

import torch
from torch import Tensor


def smoothed(x: Tensor, deviation: float = 5.0) -> Tensor:
    """Blur images (B, C, H, W) by a Gaussian of this deviation in pixels, with mirrored borders.

    The start of a tomography, after Li & Denli (2021), section 4.2. Made from the truth it gives
    part of the answer away; in practice it needs a model that is known beforehand.
    """
    if not 0 < deviation < float("inf"):
        raise ValueError(f"deviation must be positive and finite, got {deviation}")
    from scipy.ndimage import gaussian_filter

    sigmas = (0, 0, deviation, deviation)
    return torch.from_numpy(gaussian_filter(x.detach().cpu().numpy(), sigmas)).to(x)
