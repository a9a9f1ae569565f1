"""Coordinates in which a posterior is nearly standard normal."""

from dataclasses import dataclass
from functools import partial

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
    misfit_gradient,
    real_data,
    root_of,
)

LARGEST = 1024
"""Size of latents above which a root for each image takes too much memory and time."""
FEW = 512
"""Size of latents up to which it is worth its time wherever nothing else is asked for."""
SEARCHES, NORMAL_STEPS = 3, 12
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
    is 0. Where posterior and noise are normal and the operator is linear, both are exact.

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
    centre, root = mode.z.double(), mode.root.double()
    eye = torch.eye(root.shape[1]).to(root)
    precision = torch.linalg.inv(root @ root.mT)
    for k, t in enumerate(normals.double().unbind(1)):
        step = (root @ t[..., None])[..., 0]
        sides = torch.stack([centre + step, centre - step], 1)
        gradient = misfit_gradient(likelihood, sides.to(normals), rows).mean(1) + centre
        gram = gram_matrix(likelihood, sides[:, 0].to(normals), REACH * root, rows)
        share = 2 / (k + 4)
        new = precision + share * (gram + eye - precision)
        sound = gradient.isfinite().all(1) & new.isfinite().flatten(1).all(1)
        precision = chosen(sound, new, precision)
        root = root_of(precision)
        move = (root.mT @ gradient.nan_to_num()[..., None])[..., 0]
        # A step is never longer than draws are far away.
        short = (root.shape[1] ** 0.5 / move.norm(dim=1)).clamp(max=share)
        moved = centre - short[:, None] * (root @ move[..., None])[..., 0]
        centre = chosen(sound, moved, centre)
    return centre, root
