"""Coordinates in which a posterior is nearly standard normal, about its most probable latent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.posterior.likelihood import images

LARGEST = 512
"""Size of latents above which a root for each image takes too much memory and time."""
_STEP = 0.02
_PER_CALL = 16


@dataclass(frozen=True)
class Coordinates:
    """Latents z = c + S w of coordinates w, by image.

    Args:
        centre: c, (B, n).
        root: S, (B, n, n), lower triangular.
    """

    centre: Tensor
    root: Tensor

    def latents(self, w: Tensor, rows: Tensor) -> Tensor:
        """Latents (k, m, n) of w (k, m, n) of the images `rows`."""
        return self.centre[rows, None] + w @ self.root[rows].mT

    def log_det(self, rows: Tensor) -> Tensor:
        """log|det S|, (k, 1) float64."""
        return self.root[rows].diagonal(dim1=1, dim2=2).double().log().sum(1, keepdim=True)


def whitened(problem: Problem, noise: Noise, centre: Tensor) -> Coordinates:
    """Laplace's approximation at latents (B, n): S Sᵀ = (I + Jᵀ J)⁻¹.

    J is the derivative of the data by the latent, in units of the noise, by central differences, so
    that any operator will do.

    Reference: MacKay, Information theory, inference and learning algorithms (2003), chapter 27.
    """
    rows = problem.rows
    jacobian = by_rows(lambda v, r: _jacobian(problem, noise, v, r), centre, rows)
    return Coordinates(centre, by_rows(_root, jacobian))


def _root(jacobian: Tensor) -> Tensor:
    """The lower S of Jacobians (k, n, m)."""
    j = jacobian.double()
    precision = j @ j.mT + torch.eye(j.shape[1]).to(j)
    return torch.linalg.cholesky(torch.linalg.inv(precision)).to(jacobian)


@torch.no_grad()
def _jacobian(problem: Problem, noise: Noise, v: Tensor, rows: Tensor) -> Tensor:
    """Derivatives (k, n, m) of data in units of the noise at latents v (k, n) of `rows`."""
    size, found = v.shape[1], []
    y = problem.y[rows]
    for steps in (_STEP * torch.eye(size).to(v)).split(_PER_CALL):
        sides = torch.cat([v[:, None] + steps, v[:, None] - steps], 1)
        predicted = problem.forward.several(images(problem, sides, rows), rows)
        repeated = y.repeat_interleave(sides.shape[1], 0)
        standard = noise.standardised(predicted.flatten(0, 1), repeated).unflatten(0, (len(v), -1))
        if standard.is_complex():
            standard = torch.view_as_real(standard)
        above, below = standard.flatten(2).chunk(2, 1)
        found.append((above - below) / (2 * _STEP))
    return torch.cat(found, 1)
