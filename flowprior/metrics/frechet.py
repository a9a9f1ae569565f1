"""Distance of two sets of images by the normal distributions that fit their features."""

import torch
from torch import Tensor

from flowprior.argument_types import check_types


def frechet_distance(first: Tensor, second: Tensor) -> float:
    r"""Squared Fréchet distance of the normal distributions with the moments of two sets.

    .. math:: |\mu_1 - \mu_2|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2
        - 2 (\Sigma_1 \Sigma_2)^{1/2})

    FID where the features are those of Inception-v3. It is too large for few images, and so only
    to be compared between sets of equal sizes.

    Args:
        first: features (N, F), N at least 2.
        second: features (M, F), M at least 2.

    Raises:
        ValueError: the features have other shapes.

    Reference: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash
    equilibrium" (2017), equation 6.

    >>> import torch
    >>> points = torch.tensor([[0.0], [2.0]])
    >>> round(frechet_distance(points, points + 3), 6)
    9.0
    """
    check_types(frechet_distance, locals())
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"features must be (N, F) and (M, F), got {shapes}")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"features of at least 2 images expected, got {len(first)}, {len(second)}")
    first, second = first.double(), second.double()
    covariances = [torch.atleast_2d(rows.mT.cov()) for rows in (first, second)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    # Of the same eigenvalues as the product of the covariances, but symmetric.
    mixed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    spread = sum(covariance.trace() for covariance in covariances) - 2 * mixed
    return ((first.mean(0) - second.mean(0)).square().sum() + spread).clamp_min(0).item()
