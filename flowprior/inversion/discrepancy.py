"""Choose β of each image by the discrepancy principle."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_number, check_positive
from flowprior.inversion.descent import LBFGSRun, Values
from flowprior.inversion.map import MAP
from flowprior.inversion.problem import Problem
from flowprior.inversion.warned import Warned
from flowprior.inversion.wrapper import Wrapper

FACTOR = 3.0
"""By which β changes until it turns round for the first time."""
RANGE = 1000.0
"""Largest factor between β and that of the solver: some data no β fits to the noise."""
SETTLED = 2e-3
"""β of an image moves when a stage lowers the image's loss by no more than this part of it."""


@dataclass(frozen=True)
class Discrepancy(Wrapper):
    """Choose β of each image by Morozov's discrepancy principle: the residual equals the noise.

    Every `stage` iterations, β of an image falls if its residual is larger than `target` and rises
    if it is smaller, once its loss has settled, or where the residual moves away from the target.
    It changes by a factor of 3, whose logarithm is halved each time that β changes direction, and
    stays within a factor of 1000 of the solver's β. Allow several hundred iterations: each β takes
    some to settle.

    Reference: Morozov (1966); Engl, Hanke & Neubauer, Regularization of inverse problems, § 4.3.

    Args:
        solver: what to run, from its own β; its `penalty` must not be "none".
        stage: iterations over which a loss must settle; at least 1.
        target: residual to reach, in units of the noise's standard deviation.
        margin: largest |residual − target| that is accepted; 2/√(2m) for m real data by default,
            within which the residual of the truth itself is in 95 % of all cases.

    Raises:
        ValueError: names the option.
    """

    solver: MAP
    stage: int = 10
    target: float = 1.0
    margin: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("stage", self.stage, least=1)
        check_positive("target", self.target)
        if self.margin is not None:
            check_number("margin", self.margin, least=0)
        if not isinstance(self.solver, MAP):
            raise ValueError(f"solver of a Discrepancy must be a MAP, got {self.solver!r}")
        if self.solver.penalty == "none" or not self.solver.beta > 0:
            raise ValueError("solver of a Discrepancy needs a penalty and a positive beta")

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

    _STATE = ("log_beta", "size", "direction", "before", "gap", "changed", "reached", "steps")

    def __init__(self, settings: Discrepancy, problem: Problem) -> None:
        self.settings, self.problem = settings, problem
        self.run = settings.solver.begin(problem)
        self.optimizer = self.run.optimizer
        self.first = math.log(settings.solver.weight(problem.image_shape))
        self.log_beta = torch.full_like(self.run.values["loss"], self.first)
        # Size and direction of the last change of log β; loss and residual − target a stage ago.
        self.size = torch.full_like(self.log_beta, math.log(FACTOR))
        self.direction = torch.zeros_like(self.log_beta)
        self.before = torch.full_like(self.log_beta, torch.inf)
        self.gap = torch.full_like(self.log_beta, torch.inf)
        # At the last change of β: iterations of this run, and of the row's own descent.
        self.changed = torch.full_like(self.direction, -1).long()
        self.reached = torch.zeros_like(self.changed)
        parts = 2 if problem.y.is_complex() else 1
        chance = 2 / math.sqrt(2 * parts * problem.y[0].numel())
        self.margin = chance if settings.margin is None else settings.margin
        self.steps = 0
        self._use()
        self.run.restart(self.run.rows)

    @property
    def x(self) -> Tensor:
        """Images of the solver's run."""
        return self.run.x

    @property
    def z(self) -> Tensor:
        """Latents of the solver's run."""
        return self.run.z

    @property
    def finite(self) -> Tensor:
        """Rows that have stayed finite."""
        return self.run.finite

    @property
    def active(self) -> Tensor:
        """All finite rows: β may move one that has converged."""
        return self.run.finite

    @property
    def values(self) -> Values:
        """Those of the solver, and β."""
        return {**self.run.values, "beta": self.log_beta.exp()}

    def step(self) -> None:
        """Make one iteration; at the end of a stage change β before it."""
        if self.steps and self.steps % self.settings.stage == 0:
            self._adjust()
        if self.run.active.any():
            self.run.step()
        self.steps += 1

    @property
    def ended(self) -> Tensor:
        """Last change of β, where not even this gave a descent, as an iteration; -1 elsewhere."""
        if not isinstance(self.run, LBFGSRun):
            return torch.full_like(self.changed, -1)
        still = (self.run.ended >= 0) & (self.optimizer.iterations == self.reached)
        return torch.where(still, self.changed, -1)

    @torch.no_grad()
    def _adjust(self) -> None:
        settings, loss = self.settings, self.run.values["loss"]
        gap = self.problem.residual(self.run.x) - settings.target
        size = loss.abs().maximum(self.run.values["misfit"])
        settled = (self.before - loss <= SETTLED * size) | ~self.run.active
        leaving = (gap.abs() > self.gap.abs()) & (gap * self.gap > 0)
        self.gap = gap
        judged = (gap.abs() > self.margin) & (settled | leaving)
        turned = judged & (gap * self.direction > 0)
        self.size = torch.where(turned, self.size / 2, self.size)
        self.direction = torch.where(judged, -gap.sign(), self.direction)
        moved = self.log_beta + torch.where(judged, self.direction * self.size, 0)
        moved = moved.clamp(self.first - math.log(RANGE), self.first + math.log(RANGE))
        rows = (moved != self.log_beta).nonzero()[:, 0]
        self.log_beta = moved
        self._use()
        self.run.restart(rows)
        self.changed[rows] = self.steps
        if isinstance(self.run, LBFGSRun):
            self.reached[rows] = self.optimizer.iterations[rows]
        self.before = self.run.values["loss"].clone()

    def warnings(self, rows: Tensor | None = None) -> list[str]:
        """β that stopped at its limit, of all rows or of `rows` (k,), numbered in this order."""
        stage = self.settings.stage
        if self.steps <= stage:
            reason = f"beta is the solver's: it changes for the first time after {stage} iterations"
            return [Warned(reason, "beta_unchanged")]
        log_beta = self.log_beta if rows is None else self.log_beta[rows]
        limit = (log_beta - self.first).abs() >= math.log(RANGE)
        if not limit.any():
            return []
        reason = (
            f"beta stopped at its limit, a factor of {RANGE:g} from the solver's: start from "
            "another beta"
        )
        return [Warned(reason, "beta_limit", limit)]

    def _use(self) -> None:
        terms, weight = self.run.terms, self.log_beta.exp()
        if isinstance(terms.weight, Tensor):
            terms.weight.copy_(weight)
        else:
            terms.weight = weight

    def state_dict(self) -> dict[str, Any]:
        """State of the run, and β with the state of its search."""
        return {"run": self.run.state_dict(), **{n: getattr(self, n) for n in self._STATE}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        for name in self._STATE:
            setattr(self, name, state[name])
        self._use()
        self.run.load_state_dict(state["run"])
