"""The exact posterior of a linear problem with a normal prior, as a `Posterior`."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExactPosterior:
    """Draws of N(means, width² · root rootᵀ); width ≠ 1 and bias ≠ 0 make it wrong.

    Args:
        means: (B, C, H, W).
        root: (n, n).
    """

    means: Tensor
    root: Tensor
    width: float = 1.0
    bias: float = 0.0

    def sample(self, count: int, *, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        t = torch.randn(count, *self.means.shape, generator=generator, dtype=torch.float64)
        step = (t.flatten(2) @ self.root.T).view_as(t)
        return self.means + self.width * step + self.bias * self.root.norm(dim=1).view_as(t[0, 0])


def exact_posterior(matrix, y, sigma, image_shape, mean=0.5, scale=0.2, **wrong):
    """That of images with independent N(mean, scale²) pixels, and data (B, m) = matrix · x."""
    size = matrix.shape[1]
    precision = torch.eye(size).double() / scale**2 + matrix.T @ matrix / sigma**2
    covariance = precision.inverse()
    right = mean / scale**2 + y @ matrix / sigma**2
    means = (right @ covariance).view(len(y), *image_shape)
    return ExactPosterior(means, torch.linalg.cholesky(covariance), **wrong)
