"""Starting images."""

import torch
from torch import Tensor


def smoothed(x: Tensor, deviation: float = 5.0) -> Tensor:
    """Images (B, C, H, W) under a Gaussian of this standard deviation in pixels, mirrored borders.

    The start of a tomography, after Li & Denli, Gaussianization layers, section 4.2. It takes the
    truth, or a model that is known beforehand.
    """
    if not 0 < deviation < float("inf"):
        raise ValueError(f"deviation must be positive and finite, got {deviation}")
    from scipy.ndimage import gaussian_filter

    sigmas = (0, 0, deviation, deviation)
    return torch.from_numpy(gaussian_filter(x.detach().cpu().numpy(), sigmas)).to(x)
