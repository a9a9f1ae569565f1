"""Hamiltonian Monte Carlo in the latent."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.problem import Problem
from flowprior.posterior.ensemble import Point
from flowprior.posterior.likelihood import drawn, log_normal


def hamiltonian_move(
    at: Callable[[Tensor, Tensor], Point],
    leapfrog: int,
    point: Point,
    random: tuple[Tensor, Tensor],
    step_size: Tensor,
    root: Tensor,
    power: Tensor,
    rows: Tensor,
    size: int = 1,
) -> tuple[Point, Tensor]:
    """One move of each member of an ensemble, which leaves exp(−U) as it is.

    U = φ·misfit + ½‖z‖²: the prior times the likelihood to the power φ. In coordinates w, where
    z = root · w, the velocity is a draw of N(0, I), and a trajectory of `leapfrog` steps is
    accepted or not by a Metropolis test. Trajectories that end where U has no gradient are not.

    Reference: Neal, MCMC using Hamiltonian dynamics (2011), sections 2.3 and 3.1.

    Args:
        at: gives the point of latents (k, m, n) of some rows.
        leapfrog: number of steps.
        point: where the ensemble of each of k rows is.
        random: as of `velocities`.
        step_size: (k,).
        root: (k, n, n), or (k, n) if it is diagonal.
        power: φ, (k,).
        rows: which images, (k,).
        size: rows of each call of `at`.

    Returns:
        The new points, and the probabilities (k, m) with which moves were accepted.
    """
    normal, uniform = random
    # Trajectories of one length would come back to where they began in some directions.
    step = step_size[:, None] * (0.4 + 0.8 * uniform[..., 0])
    move = partial(_trajectory, at, leapfrog)
    begun = point.z, point.gradient, normal.to(point.z), step.to(point.z), root
    new, change = by_rows(move, *begun, power, rows, size=size)
    log_ratio = point.energy(power) - new.energy(power) - change
    probability = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    accept = (uniform[..., 1] < probability) & new.gradient.isfinite().all(2)
    return point.taken(accept, new), probability


def velocities(problem: Problem, stage: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    """Random numbers of a move: normal ones (B, count, n) and uniform ones (B, count, 2)."""
    size = problem.prior.latent.size

    def draw(generator: torch.Generator) -> Tensor:
        normal = torch.randn(count, size, generator=generator, dtype=torch.float64)
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return torch.cat([normal, uniform], 1)

    normal, uniform = drawn(problem, stage, draw).split([size, 2], 2)
    return normal, uniform


def _trajectory(
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
    """The end of trajectories, and by how much ½‖velocity‖² has grown there, (k, m) float64."""
    step, before = step[..., None], velocity
    for _ in range(leapfrog):
        half = velocity - step / 2 * _times(_tempered(gradient, z, power), root)
        z = z + step * _times(half, root.mT if root.ndim == 3 else root)
        point = at(z, rows)
        gradient = point.gradient
        velocity = half - step / 2 * _times(_tempered(gradient, z, power), root)
    return point, log_normal(before) - log_normal(velocity)


def _tempered(gradient: Tensor, z: Tensor, power: Tensor) -> Tensor:
    """The gradient of φ·misfit + ½‖z‖², given that of misfit + ½‖z‖²."""
    power = power[:, None, None].to(z)
    return power * gradient + (1 - power) * z


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors (k, m, n) times full (k, n, n) or diagonal (k, n) matrices."""
    return vectors @ matrix if matrix.ndim == 3 else vectors * matrix[:, None]
