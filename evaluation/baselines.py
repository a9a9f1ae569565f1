"""Rows that need no inversion."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowprior.inversion import ImageRun, Problem, Run, Solver, by_rows


@dataclass(frozen=True)
class Data(Solver):
    """The data themselves as images; for data of the images' shape."""

    differentiates: ClassVar[bool] = False

    def begin(self, problem: Problem) -> Run:
        """Take the data."""
        return ImageRun(problem, problem.y)


@dataclass(frozen=True)
class Migration(Solver):
    """The adjoint of the operator applied to the data: reverse-time migration, if it has waves.

    x = ½ + s g with g = Aᵀ(y − A(½)), from grey, and s = ‖g‖²/‖A g‖², with which x fits the data
    best: g alone has a scale of its own.
    """

    def begin(self, problem: Problem) -> Run:
        """Migrate."""
        return ImageRun(problem, by_rows(lambda rows: _migrated(problem, rows), problem.rows))


def _migrated(problem: Problem, rows: Tensor) -> Tensor:
    """Images (k, C, H, W) of the data of `rows`."""
    like = problem.like
    grey = like.new_full((len(rows), *problem.image_shape), 0.5).requires_grad_()
    with torch.enable_grad():
        predicted = problem.forward(grey, rows)
        residual = problem.y[rows] - predicted.detach()
        (g,) = torch.autograd.grad(predicted, grey, residual)
    with torch.no_grad():
        bent = problem.forward(grey + g, rows) - predicted
        size, length = (part.abs().square().flatten(1).sum(1) for part in (g, bent))
        step = torch.where(length > 0, size / length, 0)
        return (grey + step.view(-1, 1, 1, 1) * g).detach()
