"""Whitening of patches."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.gaussianization.matrix_functions import inverse_sqrt


def whiten(v: Tensor, eta: float = 1e-3) -> Tensor:
    r"""Decorrelate the rows of each matrix: C^(−1/2) (V − mean), C = cov(V) + ηI.

    The mean is over the columns, which are the samples, and the covariance is divided by N − 1.
    With N ≤ D or constant rows η alone bounds the result; it is defined for every finite V.

    Reference: Li & Denli, Gaussianization layers, eq. 18–19.

    Args:
        v: (B, D, N), N ≥ 2.
        eta: η > 0, added to the variances.

    Returns:
        The whitened matrices, (B, D, N).

    Raises:
        ValueError: the shape or eta is wrong.
    """
    check_types(whiten, {"v": v, "eta": eta})
    if v.ndim != 3 or v.shape[2] < 2:
        raise ValueError(f"whiten: v must be (B, D, N) with N >= 2, got {tuple(v.shape)}")
    if eta <= 0:
        raise ValueError(f"whiten: eta must be positive, got {eta}")
    centered = v - v.mean(2, keepdim=True)
    covariance = (centered @ centered.mT).double() / (v.shape[2] - 1)
    unit = torch.eye(v.shape[1], dtype=torch.float64, device=v.device)
    whitener = inverse_sqrt(covariance + eta * unit).to(v.dtype)
    return whitener @ centered
