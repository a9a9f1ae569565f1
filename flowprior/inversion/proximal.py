"""Proximal gradient steps, for linear operators with Gaussian noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from flowprior.inversion.images import ImageRun
from flowprior.inversion.problem import Problem

POWER_ITERATIONS = 30
MARGIN = 1.05
"""Power iteration finds the curvature from below."""


class ProximalRun(ImageRun):
    """Base of runs that follow each gradient step of the misfit by a step of their own.

    Attributes:
        step_size: 1/L of each image, (B, 1, 1, 1); L is the largest curvature of its misfit.

    Args:
        problem: the batch.
        who: name of the solver, for errors.

    Raises:
        ValueError: the noise is not known, or the misfit is not quadratic.
    """

    def __init__(self, problem: Problem, who: str) -> None:
        problem.misfit(None, who)
        super().__init__(problem)
        largest = curvature(self.misfit_gradient, self.x, who)
        self.step_size = (1 / (MARGIN * largest)).view(-1, 1, 1, 1)

    def descended(self, x: Tensor) -> Tensor:
        """Images after a gradient step of the misfit from x (B, C, H, W)."""
        return x - self.step_size * self.misfit_gradient(x)


def curvature(gradient: Callable[[Tensor], Tensor], like: Tensor, who: str) -> Tensor:
    """Largest curvature of a quadratic misfit, (B,), by power iteration.

    Args:
        gradient: of the misfit, at images (B, C, H, W).
        like: images of that shape.
        who: name of the solver, for errors.

    Raises:
        ValueError: the gradient is not an affine function, as for a nonlinear operator or noise
            that is not Gaussian.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(like.shape[1:], generator=generator).to(like).expand_as(like)
    base = gradient(torch.zeros_like(like))
    slope = gradient(direction) - base
    excess = gradient(2 * direction) - base - 2 * slope
    if not (_norm(excess) <= 1e-3 * _norm(slope)).all():
        raise ValueError(
            f"{who} needs a linear physics and Gaussian noise: the misfit is not quadratic in x; "
            "TotalVariation takes any"
        )
    for _ in range(POWER_ITERATIONS):
        direction = slope / _norm(slope).clamp(min=1e-30).view(-1, 1, 1, 1)
        slope = gradient(direction) - base
    return _norm(slope)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt()
