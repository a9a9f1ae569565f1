"""Rows that need no inversion: the plain data, and the starting point."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.inversion import ImageRun, Problem, Run, Solver


@dataclass(frozen=True)
class Data(Solver):
    """The data themselves as images; for data of the images' shape."""

    def begin(self, problem: Problem) -> Run:
        """Take the data."""
        return ImageRun(problem, problem.y)


@dataclass(frozen=True)
class Start(Solver):
    """Where the other methods start: the given images, or the image of the first latent drawn."""

    def begin(self, problem: Problem) -> Run:
        """Take the start."""
        return ImageRun(problem, starting_images(problem))


@torch.no_grad()
def starting_images(problem: Problem) -> Tensor:
    """Images (B, C, H, W) in [0, 1] that a solver over latents starts from."""
    prior = problem.prior
    if problem.start is not None:
        return problem.start
    z = prior.latent.draw(1, seed=problem.seed, like=prior.like)
    x = prior.to_unit_range(prior.generate(prior.latent.shaped(z)))
    return x.expand(len(problem.y), *x.shape[1:])  # one draw for all
