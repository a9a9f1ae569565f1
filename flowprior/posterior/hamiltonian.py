"""Trajectories of Hamiltonian dynamics in the latent."""

from collections.abc import Callable

from torch import Tensor

from flowprior.posterior.ensemble import Point
from flowprior.posterior.likelihood import log_normal


def trajectory(
    at: Callable[[Tensor, Tensor], Point],
    leapfrog: int,
    z: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    step: Tensor,
    root: Tensor,
    power: Tensor,
    rows: Tensor,
) -> tuple[Point, Tensor]:
    """The end of trajectories, and by how much ½‖velocity‖² has grown there, (k, m) float64.

    The density is that of the prior times the likelihood to some power φ:
    U = φ·misfit + ½‖z‖², where z = root · w and the velocity is that of w.

    Reference: Neal, MCMC using Hamiltonian dynamics (2011), section 2.3.

    Args:
        at: gives the point of latents (k, m, n) of some rows.
        leapfrog: number of steps.
        z: latents (k, m, n).
        gradient: of misfit + ½‖z‖² there, as `at` gives it.
        velocity: (k, m, n).
        step: sizes of the steps, (k, m).
        root: (k, n, n), or (k, n) if it is diagonal.
        power: φ, (k,).
        rows: which images, (k,).
    """
    step, before = step[..., None], velocity
    for _ in range(leapfrog):
        half = velocity - step / 2 * _times(_tempered(gradient, z, power), root)
        z = z + step * _times(half, root.mT if root.ndim == 3 else root)
        point = at(z, rows)
        gradient = point.gradient
        velocity = half - step / 2 * _times(_tempered(gradient, z, power), root)
    return point, log_normal(before) - log_normal(velocity)


def _tempered(gradient: Tensor, z: Tensor, power: Tensor) -> Tensor:
    """The gradient of φ·misfit + ½‖z‖²."""
    power = power[:, None, None].to(z)
    return power * gradient + (1 - power) * z


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors (k, m, n) times full (k, n, n) or diagonal (k, n) matrices."""
    return vectors @ matrix if matrix.ndim == 3 else vectors * matrix[:, None]
