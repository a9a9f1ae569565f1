"""Coordinates in which a posterior is nearly standard normal."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import chosen
from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.posterior.likelihood import Likelihood, normal_draws
from flowprior.posterior.mode import (
    REACH,
    Mode,
    Search,
    gram_matrix,
    log_det,
    misfit_gradient,
    real_data,
    root_of,
)

LARGEST = 1024
"""Size of latents above which a root for each image takes too much memory and time."""
FEW = 512
"""Size of latents up to which it is worth its time wherever nothing else is asked for."""
SEARCHES, NORMAL_STEPS = 3, 12
_TRIES, _ROUNDING = 4, 1e-9
_STEP = 4
"""What random numbers are for."""
_NEAR = 0.01
"""Nats for each latent: a search that promises less has found the mode well enough."""


@dataclass(frozen=True)
class Coordinates:
    """Latents z = c + S w of coordinates w, by image.

    Args:
        centre: c, (B, n).
        root: S, (B, n, n), with orthogonal columns: those of the largest variance first, so that
            couplings bend what the data determine well by what they leave open.
    """

    centre: Tensor
    root: Tensor

    def latents(self, w: Tensor, rows: Tensor) -> Tensor:
        """Latents (k, m, n) of w (k, m, n) of the images `rows`."""
        return self.centre[rows, None] + w @ self.root[rows].mT

    def log_det(self, rows: Tensor) -> Tensor:
        """log|det S|, (k, 1) float64."""
        return self.root[rows].double().norm(dim=1).log().sum(1, keepdim=True)


def whitened(
    problem: Problem,
    noise: Noise,
    starts: Tensor,
    iterations: int,
    normal_steps: int = NORMAL_STEPS,
) -> Coordinates:
    r"""Those of the normal distribution N(c, S Sᵀ) that is nearest to the posterior.

    `Search` begins at the first start; where the most probable latent that it finds explains the
    data worse than those of a linear prior and operator would, at the next one. The best has the
    largest evidence by Laplace's approximation, whose S Sᵀ = (I + JᵀJ)⁻¹ is where the second part
    begins: steps of the natural gradient towards the normal distribution of the least divergence,
    whose precision is the mean of I + JᵀJ over its draws, and for which the mean of the gradient
    is 0. One that raises the divergence, as draws of the same t tell it, is shortened or left
    out. Where posterior and noise are normal and the operator is linear, both are exact.

    References: MacKay, Information theory, inference and learning algorithms (2003), chapter 27;
    Khan & Rue, The Bayesian learning rule (2023), section 3, with JᵀJ + I for the Hessian.

    Args:
        problem: the batch.
        noise: whose misfit is meant.
        starts: latents (B, searches, n).
        iterations: of each search, at most.
        normal_steps: of the natural gradient.
    """
    begun = starts.to(problem.like)
    normals = normal_draws(problem, (0, _STEP), normal_steps)
    fit = partial(_fitted, Likelihood(problem, noise, ""), iterations)
    return Coordinates(*by_rows(fit, begun, normals, problem.rows))


def _fitted(
    likelihood: Likelihood, iterations: int, starts: Tensor, normals: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    mode = _best(likelihood, iterations, starts, rows)
    centre, root = _nearest(likelihood, mode, normals, rows)
    variance, axes = torch.linalg.eigh(root @ root.mT)
    variance, axes = variance.flip(1), axes.flip(2)
    return centre.to(starts), (axes * variance.sqrt()[:, None]).to(starts)


def _best(likelihood: Likelihood, iterations: int, starts: Tensor, rows: Tensor) -> Mode:
    """The mode of the largest evidence of those that were looked for."""
    best, tolerance = None, _NEAR * starts.shape[2]
    for start in starts.unbind(1):
        if best is not None and not _doubtful(likelihood, best).any():
            break
        found = Search(likelihood, start, rows).run(iterations, tolerance)
        if best is None:
            best = found
            continue
        better = _doubtful(likelihood, best) & (found.surprisal < best.surprisal)
        best = Mode(*(chosen(better, new, old) for new, old in zip(found, best, strict=True)))
    return best


def _doubtful(likelihood: Likelihood, mode: Mode) -> Tensor:
    """Rows whose energy is above what one of six would have at the mode of a linear problem.

    There twice the energy is a χ² variable with as many degrees of freedom as there are data. For
    other noise than a normal one nothing of that kind is known, and every row is doubtful.
    """
    count = real_data(likelihood.problem.y)
    limit = count + (2 * count) ** 0.5 if likelihood.noise.normal else 0.0
    return ~(2 * mode.energy <= limit)


def _nearest(
    likelihood: Likelihood, mode: Mode, normals: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Centre (k, n) and root (k, n, n), float64, after steps with normals (k, steps, n)."""
    now, normals = _Normal(mode.z.double(), mode.root.double()), normals.double()
    objective = _objective(likelihood, now, normals, rows)
    for k, t in enumerate(normals.unbind(1)):
        share = 2 / (k + 4)
        direction = _direction(likelihood, now, t, rows)
        pending = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(_TRIES):
            new = _moved(now, *direction, share)
            found = _objective(likelihood, new, normals, rows)
            # A posterior that bends much is far from what its curvature at one place tells.
            better = pending & (found <= objective + _ROUNDING * objective.abs())
            now = _Normal(*(chosen(better, n, o) for n, o in zip(new, now, strict=True)))
            objective = torch.where(better, found, objective)
            pending = pending & ~better
            if not pending.any():
                break
            share = share / 4
    return now


class _Normal(NamedTuple):
    """Normal distributions by centre (k, n) and lower root (k, n, n), float64."""

    centre: Tensor
    root: Tensor

    def sides(self, t: Tensor) -> Tensor:
        """The draws (k, 2 m, n) of t and −t (k, m, n)."""
        step = t @ self.root.mT
        return torch.cat([self.centre[:, None] + step, self.centre[:, None] - step], 1)


@torch.no_grad()
def _objective(likelihood: Likelihood, normal: _Normal, t: Tensor, rows: Tensor) -> Tensor:
    """The divergence (k,) as draws of t and −t (k, m, n) tell it, up to a constant."""
    if not t.shape[1]:
        return torch.zeros_like(normal.centre[:, 0])
    sides = normal.sides(t)
    misfit = likelihood(sides.to(likelihood.problem.like), rows)[1].double()
    energy = (misfit + 0.5 * sides.square().sum(2)).mean(1) - log_det(normal.root)
    return energy.nan_to_num(nan=torch.inf)


def _direction(
    likelihood: Likelihood, normal: _Normal, t: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean gradient (k, n) at draws of t and −t (k, n), and the Hessian (k, n, n) at that of t."""
    sides = normal.sides(t[:, None])
    given = sides.to(likelihood.problem.like)
    gradient = misfit_gradient(likelihood, given, rows).mean(1) + normal.centre
    gram = gram_matrix(likelihood, given[:, 0], REACH * normal.root, rows)
    hessian = gram + torch.eye(gram.shape[1]).to(gram)
    return gradient.nan_to_num(0.0, 0.0, 0.0), hessian


def _moved(normal: _Normal, gradient: Tensor, hessian: Tensor, share: float) -> _Normal:
    """The distributions after a step by some share of the way; those that are not finite stay."""
    precision = torch.linalg.inv(normal.root @ normal.root.mT)
    precision = precision + share * (hessian - precision)
    sound = precision.isfinite().flatten(1).all(1)
    root = chosen(sound, root_of(chosen(sound, precision, _unit(precision))), normal.root)
    move = (root.mT @ gradient[..., None])[..., 0]
    # A step is never longer than draws are far away.
    length = (root.shape[1] ** 0.5 / move.norm(dim=1)).clamp(max=share)
    centre = normal.centre - length[:, None] * (root @ move[..., None])[..., 0]
    return _Normal(centre, root)


def _unit(like: Tensor) -> Tensor:
    return torch.eye(like.shape[1]).to(like).expand_as(like)
