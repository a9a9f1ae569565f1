"""Solvers, their running batches, and the loop that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.inversion.batch_invariant import batch_invariant
from flowprior.inversion.checkpoint import Checkpoint
from flowprior.inversion.fit_warnings import (
    not_covered,
    residual_and_warnings,
    still_falling,
    surprise_of,
    unfinished,
)
from flowprior.inversion.probe import check_misfits, check_prior
from flowprior.inversion.problem import Problem
from flowprior.inversion.starts import range_warnings
from flowprior.inversion.warned import Warned, own_warnings
from flowprior.physics.calls import Calls
from flowprior.priors import Prior, require


class Run(Protocol):
    """A running batch; row b depends on image b alone.

    It may also have

    - `posterior()`, what `Estimate.posterior` is, or None;
    - `averages`, whether x are means of draws, which are nearer to the data than each of them;
    - `unfitted`, what a residual far above the noise may come from, if not from what iterations and
      penalties may do;
    - `warnings()`, sentences for `Estimate.warnings`, `Warned` where they are not about all rows;
      for `Restarts`, which calls it with the rows (k,) of the best runs, `warnings(rows)`, where
      row 0 of a sentence is the first of these.

    Attributes:
        x: images (B, C, H, W) in [0, 1], up to overshoot.
        z: latents (B, *latent.shape) that the prior saw, or None.
        values: loss, misfit, ...: (B,) float64 each.
        active: rows that still change, (B,).
        finite: rows that have stayed finite, (B,); the others keep their last finite values.

    A run by an optimiser may have two more attributes: `ended`, the iteration at which rows found
    no descent any more, (B,), -1 elsewhere; and `optimizer`, which `InversionModule` gives to its
    Trainer.
    """

    x: Tensor
    z: Tensor | None
    values: dict[str, Tensor]
    active: Tensor
    finite: Tensor

    def step(self) -> None:
        """Make one iteration of every active row."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers from which another run of the same problem can resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken, to the last bit."""


class Solver(ABC):
    """A method with its options: a frozen dataclass, built in Python or from YAML.

    Attributes:
        needs: methods that the prior must have; see `flowprior.priors.CAPABILITIES`. It may be a
            property that depends on the options.
        differentiates: whether it uses gradients: of the operator, of the misfit, and of the prior
            if it needs one.
        posterior_after: number of iterations after which there is a posterior to draw from; None
            if there never is one. It may be a property that depends on the options.
        through: whether it uses gradients of images that the prior projects onto its range.
        uses_start: whether its images depend on those to start from.
        takes_latents: whether one over latents starts from given ones.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    differentiates: ClassVar[bool] = True
    posterior_after: ClassVar[int | None] = None
    through: ClassVar[bool] = False
    uses_start: ClassVar[bool] = True
    takes_latents: ClassVar[bool] = True

    @abstractmethod
    def begin(self, problem: Problem) -> Run:
        """Start a batch."""

    def check(self, prior: Prior | None, who: str = "") -> None:
        """Raise ValueError, which starts with `who`, unless the prior has what is needed."""
        require(prior, self.needs, f"{who}{type(self).__name__}")


@runtime_checkable
class Posterior(Protocol):
    """A distribution of images that can be sampled."""

    def sample(self, count: int, *, seed: int) -> Tensor:
        """Draw images (count, B, C, H, W) in [0, 1]."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """The result of an inversion, one row per image.

    Args:
        x: images (B, C, H, W) in [0, 1] up to overshoot; clamp them for metrics.
        z: latents (B, *latent.shape), or None where no prior is involved.
        finite: rows that have stayed finite, (B,); the others keep their last finite values.
        history: loss, misfit, ... by name, (iterations + 1, B) each; row k is after k iterations.
            A row that has ended early repeats its last value.
        residual: rms of A(x) − y in units of the noise, (B,): about 1 where the data are fitted to
            the noise. None if the noise is not known.
        posterior: to sample from, if the solver estimates one.
        calls: how often operator and adjoint were applied to each image, with those that made the
            condition of a conditional prior, and without the check of the residual.
        warnings: what to check before trusting the images; those of this package are `Warned`, with
            the rows that each is about.
        surprise: how far the data are beyond those of images that the prior makes, in standard
            deviations, (B,); see `flowprior.inversion.surprise`. None where it says nothing: of
            other solvers than `MAP` by Bayes' rule, or other noise than a normal one.
        own_warnings: those of them that the run itself gave, by its method `warnings`.
    """

    x: Tensor
    z: Tensor | None
    finite: Tensor
    history: dict[str, Tensor]
    residual: Tensor | None = None
    posterior: Posterior | None = None
    warnings: tuple[str, ...] = ()
    surprise: Tensor | None = None
    calls: Calls | None = None
    own_warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.x.shape[1:]))
        iterations = len(next(iter(self.history.values()), [None])) - 1
        end = f"; warnings: {'; '.join(self.warnings)}" if self.warnings else ""
        return f"Estimate({len(self.x)} images {shape} after {iterations} iterations{end})"


Observer = Callable[[int, Run], None]
"""Called with 0 at the start and with the number of each iteration after it, and with the run.

`solve` calls the method `close` of one that has it when it ends: to be used in another call it must
open again at its next 0, as `Progress` does.
"""


class History:
    """Values of a run at all iterations: the observer behind `Estimate.history`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def __call__(self, iteration: int, run: Run) -> None:
        """Record the values; a ValueError if one that was there at iteration 0 is gone."""
        if self.rows and (gone := self.rows[0].keys() - run.values.keys()):
            raise ValueError(
                f"{type(run).__name__}.values must keep the names that they have at iteration 0, "
                f"but at iteration {iteration} it lacks {', '.join(sorted(gone))}"
            )
        self.rows.append({name: value.clone() for name, value in run.values.items()})

    def warnings(self) -> Iterator[Warned]:
        """Of values that were not there from the start."""
        late = sorted(set().union(*self.rows) - self.rows[0].keys())
        if late:
            reason = f"values were not there at iteration 0, and are not kept: {', '.join(late)}"
            yield Warned(reason, "late_values")

    def stacked(self) -> dict[str, Tensor]:
        """Every value by name, (iterations + 1, B)."""
        return {name: torch.stack([row[name] for row in self.rows]) for name in self.rows[0]}

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.rows = state["rows"]


def solve(
    solver: Solver,
    problem: Problem,
    iterations: int,
    observers: Sequence[Observer] = (),
    checkpoint: Checkpoint | None = None,
) -> Estimate:
    """Run a solver on a batch from its start, or from the checkpoint of a killed call.

    Args:
        solver: the method with its options.
        problem: the batch.
        iterations: maximum number; rows may end earlier.
        observers: called at every iteration. Those that have `state_dict` are checkpointed too;
            those that have `close` are closed at the end, also after an error, whoever made them.
        checkpoint: file to resume from, and to save the state in.

    Raises:
        ValueError: the solver does not suit the problem, or an argument is wrong; it is named.
    """
    check_types(solve, locals())
    check_solver(solver)
    check_integer("iterations", iterations, least=0)
    _check_watchers(observers, checkpoint)
    check_together(solver, problem)
    history = History()
    if checkpoint is not None:
        checkpoint.belongs_to(solver, problem)
    with batch_invariant(), _closed(observers):
        counted = problem.forward.calls
        counted.restart()  # the problem may have been solved before
        run = solver.begin(problem)
        advance(run, iterations, [history, counted, *observers], checkpoint)
        cost = problem.condition_cost
        none = Calls.none(len(problem.y), problem.y.device)
        calls = counted + (none if cost is None else cost.calls)  # without the residual's check
        own = own_warnings(run)
        residual, warnings = residual_and_warnings(run, problem)
    posterior = run.posterior() if hasattr(run, "posterior") else None
    curves = history.stacked()
    still = still_falling(run, curves, residual)
    found = surprise_of(run, problem, residual)
    of_start = [*range_warnings(problem.start), *_unused_start(solver, problem)]
    warnings = (*of_start, *own, *history.warnings(), *warnings, *unfinished(still, curves))
    warnings = (*warnings, *not_covered(found, run.finite & ~still))
    values = run.x, run.z, run.finite, curves, residual, posterior, warnings
    return Estimate(*values, surprise=found, calls=calls, own_warnings=own)


@contextmanager
def _closed(observers: Sequence[Observer]) -> Iterator[None]:
    try:
        yield
    finally:
        for observer in observers:
            if hasattr(observer, "close"):
                observer.close()


def check_solver(solver: object) -> None:
    """Raise ValueError unless it is a solver."""
    if not isinstance(solver, Solver):
        raise ValueError(
            f"solver must be a flowprior.inversion.Solver such as MAP(), got {solver!r}"
        )


def check_together(solver: Solver, problem: Problem) -> None:
    """Raise ValueError unless prior, operator and noise have what the solver needs."""
    if problem.latents is not None and not solver.needs:
        raise ValueError(f"{type(solver).__name__} starts from images: give start, not latents")
    if problem.latents is not None and not solver.takes_latents:
        raise ValueError(f"{type(solver).__name__} has starts of its own: leave out the latents")
    solver.check(problem.prior)
    gradient_for = type(solver).__name__ if solver.differentiates else None
    options = {"gradient_for": gradient_for, "through": solver.through}
    check_prior(problem.prior, solver.needs, problem.condition, **options)
    check_data(solver, problem)


def check_data(solver: Solver, problem: Problem) -> None:
    """Raise ValueError unless operator and noise have what the solver needs."""
    check_misfits(solver, problem)
    if solver.differentiates and not problem.forward.differentiable:
        raise ValueError(
            f"physics: {problem.forward.name} has no gradient, which {type(solver).__name__} "
            "needs: A(x) does not require grad"
        )


def _check_watchers(observers: object, checkpoint: object) -> None:
    if not isinstance(observers, Sequence) or not all(map(callable, observers)):
        raise ValueError(f"observers must be a list of functions, got {observers!r}")
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise ValueError(f"checkpoint must be a Checkpoint(path), got {checkpoint!r}")


def advance(
    run: Run,
    iterations: int,
    observers: Sequence[Observer] = (),
    checkpoint: Checkpoint | None = None,
) -> None:
    """Make up to `iterations` iterations of a run, and show each to all observers."""
    done = -1 if checkpoint is None else checkpoint.restore(run, observers)
    if done > iterations:
        raise ValueError(
            f"checkpoint {checkpoint.path} is at iteration {done}, beyond iterations={iterations}"
        )
    for iteration in range(done + 1, iterations + 1):
        if iteration > 0 and run.active.any():
            run.step()
        for observe in observers:
            observe(iteration, run)
        if checkpoint is not None:
            checkpoint.note(iteration, run, observers)


def _unused_start(solver: Solver, problem: Problem) -> Iterator[Warned]:
    if problem.start is not None and not solver.uses_start:
        yield Warned(f"{type(solver).__name__} makes no use of start", "start_unused")
