"""Solvers around another solver: several starts, and β by the discrepancy principle."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.inversion.descent import AdamRun, LBFGSRun, Values, check_number
from flowprior.inversion.map import MAP
from flowprior.inversion.problem import Forward, Problem
from flowprior.inversion.solving import Run, Solver
from flowprior.priors import Prior


@dataclass(frozen=True)
class Restarts(Solver):
    """The best of several runs of each image from different starts, all in one batch.

    The best is the one with the smallest loss, so that nothing is chosen by the truth.

    Args:
        solver: what to run.
        count: number of starts; start k is the draw of seed + k.
    """

    solver: MAP
    count: int = 10

    def __post_init__(self) -> None:
        check_number("count", self.count, lambda n: n >= 1 and n == int(n), "a whole number from 1")

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the solver."""
        return self.solver.needs

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`."""
        self.solver.check(prior, f"{who}{type(self).__name__} of ")

    def begin(self, problem: Problem) -> "RestartRun":
        """Start `count` runs of every image; those of one image are neighbours."""
        v = self.start(problem) if problem.latents is None else problem.latents
        repeated = replace(
            problem,
            forward=_RepeatedForward(problem.forward, self.count),
            **{name: self._repeated(getattr(problem, name)) for name in ("y", "condition")},
            start=None,
            latents=v,
            indices=[index for index in problem.indices for _ in range(self.count)],
        )
        return RestartRun(self.solver.begin(repeated), self.count)

    def start(self, problem: Problem) -> Tensor:
        """Latents v (B·count, n) to start from."""
        seeds = range(problem.seed, problem.seed + self.count)
        starts = [self.solver.start(replace(problem, seed=seed)) for seed in seeds]
        return torch.stack(starts, 1).flatten(0, 1)

    def _repeated(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.repeat_interleave(self.count, 0)


class _RepeatedForward(Forward):
    """An operator on `count` images in place of each."""

    def __init__(self, forward: Forward, count: int) -> None:
        super().__init__(forward.physics, forward.images)
        self.inner, self.count = forward, count

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Noiseless data of images x of all runs, or of `rows` of them."""
        if self.images is None:
            return self.inner(x)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        data = [self.inner(x[i : i + 1], row[None] // self.count) for i, row in enumerate(rows)]
        return torch.cat(data)


class RestartRun:
    """The batch of `Restarts`: as a `Run`, it shows the best run of every image."""

    def __init__(self, run: LBFGSRun | AdamRun, count: int) -> None:
        self.run, self.count = run, count
        self.v, self.optimizer = run.v, run.optimizer

    @property
    def best(self) -> Tensor:
        """Row of the best run of each image, (B,)."""
        loss = self.run.values["loss"].masked_fill(~self.run.finite, torch.inf)
        loss = loss.nan_to_num(nan=torch.inf).view(-1, self.count)
        return loss.argmin(1) + self.count * torch.arange(len(loss), device=loss.device)

    @property
    def x(self) -> Tensor:
        """Images of the best runs."""
        return self.run.x[self.best]

    @property
    def z(self) -> Tensor | None:
        """Latents of the best runs."""
        z = self.run.z
        return None if z is None else z[self.best]

    @property
    def values(self) -> Values:
        """Values of the best runs."""
        best = self.best
        return {name: value[best] for name, value in self.run.values.items()}

    @property
    def active(self) -> Tensor:
        """Images of which a run still moves."""
        return self.run.active.view(-1, self.count).any(1)

    @property
    def finite(self) -> Tensor:
        """Whether the best run is finite."""
        return self.run.finite[self.best]

    def step(self) -> None:
        """Make one iteration of every run."""
        self.run.step()

    def state_dict(self) -> dict[str, Any]:
        """State of all runs."""
        return self.run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.run.load_state_dict(state)


@dataclass(frozen=True)
class Discrepancy(Solver):
    """β of each image by Morozov's discrepancy principle: the residual equals the noise.

    log β is bisected per image, from the solver's own β: every `stage` iterations it falls where
    the residual is larger than `target` times the noise and rises where it is smaller, by a factor
    of 10 until it has been on both sides and then by halves of the interval.

    Reference: Morozov (1966); Engl, Hanke & Neubauer, Regularization of inverse problems, § 4.3.

    Args:
        solver: what to run; its `penalty` must not be "none".
        stage: iterations between two changes of β.
        target: residual to reach, in units of the noise's standard deviation.
        tolerance: |residual − target| that is close enough.
    """

    solver: MAP
    stage: int = 10
    target: float = 1.0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_number("stage", self.stage, lambda n: n >= 1 and n == int(n), "a whole number from 1")
        check_number("target", self.target, lambda target: target > 0, "positive")
        check_number("tolerance", self.tolerance, lambda size: size >= 0, "at least 0")
        if self.solver.penalty == "none" or not self.solver.beta > 0:
            raise ValueError("Discrepancy: the solver needs a penalty and a positive beta")

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the solver."""
        return self.solver.needs

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`."""
        self.solver.check(prior, f"{who}{type(self).__name__} of ")

    def begin(self, problem: Problem) -> "DiscrepancyRun":
        """Start the solver's run, with a β for each image."""
        if problem.noise is None:
            raise ValueError("Discrepancy needs the noise level: give sigma= or noise=")
        return DiscrepancyRun(self, problem)

    def start(self, problem: Problem) -> Tensor:
        """Latents v (B, n) to start from."""
        return self.solver.start(problem)


class DiscrepancyRun:
    """The batch of a `Discrepancy`; `values["beta"]` is β per nat of each image."""

    def __init__(self, settings: Discrepancy, problem: Problem) -> None:
        self.settings, self.problem = settings, problem
        self.run = settings.solver.begin(problem)
        self.v, self.optimizer = self.run.v, self.run.optimizer
        weight = math.log(settings.solver.weight(problem.image_shape))
        rows = torch.full_like(self.run.values["loss"], weight)
        # log β and the interval that it is known to be in.
        self.log_beta, self.low, self.high = rows, rows - torch.inf, rows + torch.inf
        self.steps = 0
        self._use()

    x = property(lambda self: self.run.x)
    z = property(lambda self: self.run.z)
    finite = property(lambda self: self.run.finite)

    @property
    def active(self) -> Tensor:
        """Rows that are finite: β may move a row that has converged."""
        return self.run.finite

    @property
    def values(self) -> Values:
        """Those of the solver, and β."""
        return {**self.run.values, "beta": self.log_beta.exp()}

    def step(self) -> None:
        """Make one iteration; change β first where a stage has ended."""
        if self.steps and self.steps % self.settings.stage == 0:
            self._adjust()
        if self.run.active.any():
            self.run.step()
        self.steps += 1

    @torch.no_grad()
    def _adjust(self) -> None:
        settings = self.settings
        residual = self.problem.residual(self.run.x)
        off = (residual - settings.target).abs() > settings.tolerance
        large, small = off & (residual > settings.target), off & (residual <= settings.target)
        self.high = torch.where(large, self.log_beta, self.high)
        self.low = torch.where(small, self.log_beta, self.low)
        step = math.log(10)
        middle = (self.low + self.high) / 2
        down = torch.where(self.low.isinf(), self.log_beta - step, middle)
        up = torch.where(self.high.isinf(), self.log_beta + step, middle)
        self.log_beta = torch.where(large, down, torch.where(small, up, self.log_beta))
        self._use()
        self.run.restart()

    def _use(self) -> None:
        self.run.terms.weight = self.log_beta.exp()

    def state_dict(self) -> dict[str, Any]:
        """State of the run, β, and what is known of it."""
        names = ("log_beta", "low", "high", "steps")
        return {"run": self.run.state_dict(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        for name in ("log_beta", "low", "high", "steps"):
            setattr(self, name, state[name])
        self._use()
        self.run.load_state_dict(state["run"])


def free_latents(solver: Solver, problem: Problem) -> nn.Parameter:
    """The unknowns v of a solver over latents, where it starts.

    Raises:
        ValueError: the solver works on images.
    """
    if not hasattr(solver, "start"):
        raise ValueError(f"{type(solver).__name__} does not work on latents: use invert")
    return nn.Parameter(solver.start(problem).detach().clone())


__all__ = ["Discrepancy", "DiscrepancyRun", "RestartRun", "Restarts", "Run", "free_latents"]
