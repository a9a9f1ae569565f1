"""Zero mean and a given standard deviation."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types


def standardize(x: Tensor, temperature: float = 1.0) -> Tensor:
    """γ (x − mean) / std with the moments of each row of x (B, n), γ the temperature.

    Population moments. A row that is constant to rounding becomes 0, with gradient 0.

    Reference: Li & Denli, Gaussianization layers, eq. 14.
    """
    check_types(standardize, {"x": x, "temperature": temperature})
    mean, std = moments(x)
    return (x - mean) / std * temperature


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row of x (B, n), (B, 1) each; ∞ for a constant row."""
    scale, constant = scale_and_constancy(x)
    mean = x.mean(1, keepdim=True)
    # Divided by the scale, the squares of very large or small numbers stay in range.
    scaled = (x - mean) / torch.where(constant, 1, scale)
    variance = torch.where(constant, 1, scaled.square().mean(1, keepdim=True))
    return mean, torch.where(constant, torch.inf, variance.sqrt() * scale)


@torch.no_grad()
def scale_and_constancy(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of x (B, n): max |x|, and whether it is constant to rounding; (B, 1) each."""
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    scale = torch.maximum(low.abs(), high.abs())
    return scale, high - low <= 16 * torch.finfo(x.dtype).eps * scale
