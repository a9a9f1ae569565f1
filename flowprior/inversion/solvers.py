"""Optimisers of the latents of a batch of images, each image by itself."""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from flowprior.inversion.batched_lbfgs import BatchedLBFGS, RowStatus
from flowprior.inversion.objective import Terms
from flowprior.inversion.problem import Problem

CURVES = ("loss", "misfit", "log_prior")
Method = Literal["lbfgs", "adam"]


class Solver(Protocol):
    """Moves unknowns `v` (B, ...) downhill, latents of a flow for example.

    `values` (3, B) are loss, misfit and log prior at v, and `x` (B, C, H, W) are the images there.
    `active` (B,) are the rows that still move. `finite` (B,) are those that have stayed finite; the
    others keep their last finite unknowns and values, or those of the start.
    """

    problem: Problem
    v: nn.Parameter
    x: Tensor
    optimizer: torch.optim.Optimizer
    values: Tensor
    active: Tensor
    finite: Tensor

    def step(self) -> None:
        """Make one iteration."""


def make_solver(problem: Problem, v: nn.Parameter, method: Method, learning_rate: float) -> Solver:
    """The solver of a name, at v; raises ValueError for a wrong name or learning rate."""
    if method == "lbfgs":
        return LBFGSSolver(problem, v)
    if method != "adam":
        raise ValueError(f'method must be "lbfgs" or "adam", got {method!r}')
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    return AdamSolver(problem, v, learning_rate)


class LBFGSSolver:
    """L-BFGS with a history and a strong-Wolfe line search for every image."""

    def __init__(self, problem: Problem, v: nn.Parameter, memory: int = 30) -> None:
        self.problem = problem
        self.v = v
        self.optimizer = BatchedLBFGS([self.v], memory=memory)
        with torch.no_grad():
            terms = problem.terms(self.v)
        self.x, self.values = terms.x, _values(terms)
        self.finite = self.values.isfinite().all(0)

    @property
    def active(self) -> Tensor:
        """Rows that have neither converged nor failed."""
        return self.optimizer.active

    def step(self) -> None:
        """Make one outer iteration of every active row."""
        seen: list[tuple[Tensor, Tensor, Tensor]] = []

        def closure(rows: Tensor) -> Tensor:
            terms = self.problem.terms(self.v[rows], rows)
            terms.loss.sum().backward()
            seen.append((rows, _values(terms), terms.x.detach()))
            return terms.loss.detach()

        self.optimizer.step(closure)
        # Of the points tried, a row is at the one whose loss is its own.
        for rows, values, x in seen:
            accepted = values[0] == self.optimizer.losses[rows]
            self.values[:, rows] = torch.where(accepted, values, self.values[:, rows])
            self.x[rows] = torch.where(accepted.view(-1, 1, 1, 1), x, self.x[rows])
        self.finite = self.optimizer.status != RowStatus.NONFINITE


class AdamSolver:
    """Adam, whose steps depend on no other image because it works entry by entry."""

    def __init__(self, problem: Problem, v: nn.Parameter, learning_rate: float) -> None:
        self.problem = problem
        self.v = v
        self.optimizer = torch.optim.Adam([v], learning_rate)
        self.finite = torch.ones(len(v), dtype=torch.bool, device=v.device)
        self.values = torch.full((3, len(v)), torch.nan, dtype=torch.float64, device=v.device)
        self._kept = v.detach().clone()
        with torch.no_grad():
            self.x = problem.terms(v).x
        self._evaluate()

    @property
    def active(self) -> Tensor:
        """Rows that are finite."""
        return self.finite

    def step(self) -> None:
        """Make one step of every finite row."""
        self.v.grad = self._gradient  # others may have cleared it in the meantime
        self.optimizer.step()
        self._evaluate()

    def _evaluate(self) -> None:
        """Loss and gradient at v; rows where they are not finite go back and stay."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            terms = self.problem.terms(self.v)
            terms.loss.sum().backward()
        values = _values(terms)
        sound = values.isfinite().all(0) & self.v.grad.isfinite().flatten(1).all(1)
        self.finite = self.finite & sound
        shape = (-1, *[1] * (self.v.ndim - 1))
        finite = self.finite.view(shape)
        with torch.no_grad():
            self.v.copy_(torch.where(finite, self.v, self._kept))
        self._gradient = torch.where(finite, self.v.grad, 0)
        self._kept = self.v.detach().clone()
        self.values = torch.where(self.finite | self.values.isnan(), values, self.values)
        self.x = torch.where(self.finite.view(-1, 1, 1, 1), terms.x.detach(), self.x)


def _values(terms: Terms) -> Tensor:
    return torch.stack([terms.loss, terms.misfit, terms.log_prior.double()]).detach()
