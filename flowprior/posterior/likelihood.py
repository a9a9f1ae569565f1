"""Images, misfits, starts and random numbers of several latents for each image of a problem."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from flowprior.inversion.images import row_seed
from flowprior.inversion.map import MAP
from flowprior.inversion.problem import Problem
from flowprior.inversion.restarts import Restarts
from flowprior.inversion.solving import advance
from flowprior.physics.noise import Noise


class Likelihood:
    """Images and misfits of m latents for each image of a problem."""

    def __init__(self, problem: Problem, misfit: Noise | None, who: str) -> None:
        self.problem = problem
        self.noise = problem.misfit(misfit, who)

    def __call__(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (k, m, C, H, W) and misfits (k, m) of latents z (k, m, n) of `rows`."""
        x = images(self.problem, z, rows)
        return x, self.misfits(x, rows)

    def misfits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Misfits (k, m) of images (k, m, C, H, W) of `rows`."""
        count = x.shape[1]
        predicted = self.problem.forward.several(x, rows).flatten(0, 1)
        y = self.problem.y[rows].repeat_interleave(count, 0)
        return self.noise.misfit(predicted, y).unflatten(0, (-1, count))


def images(problem: Problem, z: Tensor, rows: Tensor) -> Tensor:
    """Images (k, m, C, H, W) in [0, 1] of latents z (k, m, n) of the images `rows`."""
    x = problem.prior.generate(*_given(problem, z, rows))
    return problem.prior.to_unit_range(x).unflatten(0, z.shape[:2])


def decoded(problem: Problem, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same images, and log|det ∂x/∂z| (k, m) float64, x in the prior's range."""
    x, log_det = problem.prior.decode(*_given(problem, z, rows))
    unit = problem.prior.to_unit_range(x)
    return unit.unflatten(0, z.shape[:2]), log_det.double().unflatten(0, z.shape[:2])


def _given(problem: Problem, z: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Latents as the prior takes them, and the condition if there is one."""
    shaped, condition = problem.prior.latent.shaped(z.flatten(0, 1)), problem.condition
    if condition is None:
        return (shaped,)
    return shaped, condition[rows].repeat_interleave(z.shape[1], 0)


def log_normal(z: Tensor) -> Tensor:
    """The density N(z; 0, I) of latents z (k, m, n): logarithms in nats, (k, m) float64."""
    square = z.double().square().sum(-1)
    return -0.5 * (square + z.shape[-1] * math.log(2 * math.pi))


def starts(problem: Problem, misfit: Noise | None, count: int) -> Tensor:
    """Latents (B·count, n) to start from; those of one image are adjacent.

    Given latents (B, n) are the start of all `count`.

    Raises:
        ValueError: given latents have another number of rows.
    """
    if problem.latents is None:
        return Restarts(MAP(misfit=misfit), count).start(problem)
    rows = len(problem.y)
    if len(problem.latents) not in (rows, rows * count):
        raise ValueError(
            f"latents must have {rows} rows, or {rows * count} for {count} of each image, got "
            f"{len(problem.latents)}"
        )
    if len(problem.latents) == len(problem.y):
        return problem.latents if count == 1 else problem.latents.repeat_interleave(count, 0)
    return problem.latents


def descended(problem: Problem, misfit: Noise | None, count: int, iterations: int) -> nn.Parameter:
    """More probable latents (B·count, n) near `starts`, after iterations of L-BFGS."""
    begun = replace(problem, latents=starts(problem, misfit, count))
    run = Restarts(MAP(misfit=misfit), count).begin(begun)
    advance(run, iterations)
    return run.run.v


def drawn(
    problem: Problem, stage: tuple[int, ...], draw: Callable[[torch.Generator], Tensor]
) -> Tensor:
    """What `draw` makes for each image from a generator of (seed, index, stage), stacked."""
    rows = range(len(problem.y))
    made = [draw(torch.Generator().manual_seed(row_seed(problem, r, *stage))) for r in rows]
    return torch.stack(made).to(problem.y.device)


def normal_draws(problem: Problem, stage: tuple[int, ...], count: int) -> Tensor:
    """Draws of N(0, I), (B, count, n), by (seed, index, stage)."""
    size, dtype = problem.prior.latent.size, problem.like.dtype
    return drawn(problem, stage, lambda g: torch.randn(count, size, generator=g, dtype=dtype))
