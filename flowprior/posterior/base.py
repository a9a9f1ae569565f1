"""Distributions over the latents of a prior, to draw images from."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from flowprior.checks import check_integer
from flowprior.inversion.batch_invariant import batch_invariant, by_rows
from flowprior.inversion.problem import Problem
from flowprior.posterior.likelihood import images

DRAWS_PER_CALL = 32
"""Images of one row that are made at once, so that memory does not grow with their number."""


class LatentPosterior(ABC):
    """A distribution over the latents of each image of a problem: a `Posterior`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def draw(self, count: int, problem: Problem) -> Tensor:
        """Draw latents (B, count, n) with the random numbers of `problem`, which has the seed."""

    def latents(self, count: int, *, seed: int) -> Tensor:
        """Draw flat latents (count, B, n); arguments as for `sample`."""
        return self._drawn(count, seed).transpose(0, 1)

    def sample(self, count: int, *, seed: int) -> Tensor:
        """Draw images (count, B, C, H, W) in [0, 1], up to overshoot.

        Those of an image depend on (seed, index of the image) alone, not on the batch.

        Raises:
            ValueError: count is not a positive integer, or seed is negative.
        """
        z = self._drawn(count, seed)
        with torch.no_grad(), batch_invariant():
            parts = [
                by_rows(lambda z, rows: images(self.problem, z, rows), part, self.problem.rows)
                for part in z.split(DRAWS_PER_CALL, 1)
            ]
        return torch.cat(parts, 1).transpose(0, 1)

    def _drawn(self, count: int, seed: int) -> Tensor:
        check_integer("count", count, least=1)
        check_integer("seed", seed, least=0)
        with torch.no_grad(), batch_invariant():
            return self.draw(count, replace(self.problem, seed=seed))
