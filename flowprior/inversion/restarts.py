"""Several starts for each image."""

from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.inversion.descent import Values
from flowprior.inversion.forward import Forward
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Run, Solver
from flowprior.inversion.warned import own_warnings
from flowprior.inversion.wrapper import Wrapper


@dataclass(frozen=True)
class Restarts(Wrapper):
    """The best of several runs of each image from different starts, all in one batch.

    The best is the one with the smallest loss; the truth is not used.

    Args:
        solver: what to run: a solver over latents, whose runs have `values["loss"]`.
        count: number of starts; start k is drawn with seed · count + k: no two seeds share one.

    Raises:
        ValueError: names the option.
    """

    solver: Solver
    count: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("count", self.count, least=1)
        if not hasattr(self.solver, "start") or not self.solver.takes_latents:
            raise ValueError(
                "solver of Restarts must start from given latents, as MAP does, got "
                f"{self.solver!r}"
            )

    def begin(self, problem: Problem) -> "RestartRun":
        """Start `count` runs of every image; those of one image are adjacent rows."""
        v = self.start(problem) if problem.latents is None else problem.latents
        repeated = replace(
            problem,
            forward=_RepeatedForward(problem.forward, self.count),
            **{name: self._repeated(getattr(problem, name)) for name in ("y", "condition")},
            start=None,
            latents=v,
            indices=[index for index in problem.indices for _ in range(self.count)],
        )
        run = self.solver.begin(repeated)
        if "loss" not in run.values:
            name = type(self.solver).__name__
            raise ValueError(f"Restarts compares losses, which the runs of {name} do not have")
        _check_warnings(run)
        return RestartRun(run, self.count)

    def start(self, problem: Problem) -> Tensor:
        """Latents v (B·count, n) to start from."""
        seeds = [problem.seed * self.count + k for k in range(self.count)]
        starts = [self.solver.start(replace(problem, seed=seed)) for seed in seeds]
        return torch.stack(starts, 1).flatten(0, 1)

    def _repeated(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.repeat_interleave(self.count, 0)


def _check_warnings(run: Run) -> None:
    if not hasattr(run, "warnings"):
        return
    try:
        signature(run.warnings).bind(None)
    except TypeError as error:
        raise ValueError(
            f"Restarts calls warnings(rows) with the rows of the best runs, which "
            f"{type(run).__name__}.warnings does not take"
        ) from error
    except ValueError:  # it has no signature
        return


class _RepeatedForward(Forward):
    """An operator on `count` images for each image of the batch."""

    def __init__(self, forward: Forward, count: int) -> None:
        super().__init__(forward.physics, forward.images, forward.differentiable, forward.calls)
        self.inner, self.count = forward, count

    def _data(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Noiseless data of images x of all runs, or of `rows` of them."""
        if self.images is None:
            return self.inner._data(x)
        rows = torch.arange(len(x), device=x.device) if rows is None else rows
        # The operator takes each image once, so the runs go to it start by start.
        groups = [(rows % self.count == k).nonzero()[:, 0] for k in range(self.count)]
        groups = [group for group in groups if len(group)]
        parts = [self.inner._data(x[group], rows[group] // self.count) for group in groups]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _images_of(self, rows: Tensor) -> Tensor:
        return self.inner._images_of(rows // self.count)


class RestartRun:
    """The batch of `Restarts`: as a `Run`, it shows the best run of every image."""

    def __init__(self, run: Run, count: int) -> None:
        self.run, self.count = run, count
        self.optimizer = getattr(run, "optimizer", None)
        self.tests_prior = getattr(run, "tests_prior", False)
        self.averages = getattr(run, "averages", False)

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
        """Images with a run that still moves."""
        return self.run.active.view(-1, self.count).any(1)

    @property
    def finite(self) -> Tensor:
        """Whether the best run is finite."""
        return self.run.finite[self.best]

    @property
    def ended(self) -> Tensor:
        """Iteration at which the best runs found no descent any more, (B,); -1 elsewhere."""
        ended = getattr(self.run, "ended", None)
        return torch.full_like(self.best, -1) if ended is None else ended[self.best]

    def warnings(self, rows: Tensor | None = None) -> tuple[str, ...]:
        """Those of the best runs, whose rows are the images, or `rows` (k,) of these."""
        return own_warnings(self.run, self.best if rows is None else self.best[rows])

    def step(self) -> None:
        """Make one iteration of every run."""
        self.run.step()

    def state_dict(self) -> dict[str, Any]:
        """State of all runs."""
        return self.run.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        self.run.load_state_dict(state)
