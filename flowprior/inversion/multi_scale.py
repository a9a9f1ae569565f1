"""Inversion from low to high frequencies: it avoids fits that are a period off."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_positive
from flowprior.inversion.descent import Values
from flowprior.inversion.forward import Forward
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Posterior, Run, Solver
from flowprior.inversion.warned import Warned, own_warnings
from flowprior.inversion.wrapper import Wrapper


@dataclass(frozen=True)
class MultiScale(Wrapper):
    """A solver on data up to one frequency after the other, and at last on all of them.

    Each begins with the latents of the one before, or with its images where there are none. The
    operator must have `with_lowpass(frequency)`, an operator that makes data up to a frequency, and
    that one `lowpassed(y)`, which gives them from all data, as `FullWaveform` has. Its data up to a
    frequency have white noise of the σ that all data have, so that their misfit is right for
    `Gaussian` noise. With other noise only the last one's is, the earlier ones being a way to it.

    Reference: Bunks, Saleck, Zaleski & Chavent, Multiscale seismic waveform inversion (1995).

    Args:
        solver: what to run.
        frequencies: in Hz, increasing, before all frequencies.
        stage: number of iterations with each of them; only those after them are for all
            frequencies.

    Raises:
        ValueError: names the option.
    """

    solver: Solver
    frequencies: tuple[float, ...] = (5.0, 10.0)
    stage: int = 20

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("stage", self.stage, least=1)
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver of MultiScale must be a Solver, got {self.solver!r}")
        if not self.solver.takes_latents:
            raise ValueError(
                "solver of MultiScale must start from given latents, as MAP does, got "
                f"{self.solver!r}"
            )
        for frequency in self.frequencies:
            check_positive("frequencies", frequency)
        object.__setattr__(self, "frequencies", tuple(map(float, self.frequencies)))
        if list(self.frequencies) != sorted(set(self.frequencies)):
            raise ValueError(f"frequencies must increase, got {self.frequencies}")

    @property
    def before(self) -> int:
        """Number of iterations before those with all frequencies."""
        return self.stage * len(self.frequencies)

    @property
    def posterior_after(self) -> int | None:
        """That of the solver, on all frequencies."""
        after = self.solver.posterior_after
        return None if after is None else self.before + max(after, 1)

    def begin(self, problem: Problem) -> "MultiScaleRun":
        """Start with the lowest frequencies."""
        physics = problem.forward.physics
        if not hasattr(physics, "with_lowpass"):
            raise ValueError(
                f"MultiScale needs an operator that has `with_lowpass`, such as FullWaveform; "
                f"{problem.forward.name} has not"
            )
        if getattr(physics, "lowpass", None) is not None:
            raise ValueError("MultiScale needs all data: leave the operator's lowpass out")
        return MultiScaleRun(self, problem)


class MultiScaleRun:
    """The batch of a `MultiScale`; its values are those at the present frequencies.

    `values["scale"]` is how many frequencies it is beyond: losses of another number are of other
    data.
    """

    def __init__(self, settings: MultiScale, problem: Problem) -> None:
        self.settings, self.problem = settings, problem
        self.scale, self.steps = 0, 0
        self.sound = torch.ones(len(problem.y), dtype=torch.bool, device=problem.y.device)
        self.run = self._begun(problem)
        if self.run.z is not None and not hasattr(self.run, "v"):
            name = type(settings.solver).__name__
            raise ValueError(f"MultiScale cannot go on from latents of {name}: give it MAP or such")

    @property
    def x(self) -> Tensor:
        """Images of the present run."""
        return self.run.x

    @property
    def z(self) -> Tensor | None:
        """Latents of the present run."""
        return self.run.z

    @property
    def values(self) -> Values:
        """Those of the present run, and the number of the present frequency."""
        scale = torch.full_like(self.sound, self.scale, dtype=torch.float64)
        return {**self.run.values, "scale": scale}

    @property
    def finite(self) -> Tensor:
        """Rows that have stayed finite at all frequencies."""
        return self.sound & self.run.finite

    @property
    def active(self) -> Tensor:
        """All finite rows, until the last run has begun, and then those that it moves."""
        return self.run.active & self.sound if self.last else self.finite

    @property
    def last(self) -> bool:
        """Whether all frequencies are in use."""
        return self.scale == len(self.settings.frequencies)

    @property
    def tests_prior(self) -> bool:
        """See `Descent.tests_prior`; latents of low frequencies alone do not tell."""
        return self.last and getattr(self.run, "tests_prior", False)

    @property
    def averages(self) -> bool:
        """Whether images are means of draws."""
        return getattr(self.run, "averages", False)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """That of the present run, if it has one."""
        return getattr(self.run, "optimizer", None)

    @property
    def ended(self) -> Tensor:
        """Iteration at which all data gave no descent any more, (B,); -1 elsewhere."""
        ended = getattr(self.run, "ended", None) if self.last else None
        if ended is None:
            return torch.full_like(self.sound, -1, dtype=torch.long)
        return torch.where(ended >= 0, ended + self.settings.before, -1)

    def posterior(self) -> Posterior | None:
        """That of the last run, given all data; None before it."""
        found = getattr(self.run, "posterior", None) if self.last else None
        return None if found is None else found()

    def step(self) -> None:
        """Make one iteration; at the end of a stage take more frequencies before it."""
        due = self.steps > 0 and self.steps % self.settings.stage == 0
        if due and not self.last:
            self.sound = self.finite
            self.scale += 1
            self.run = self._begun(self._from_here())
        if self.run.active.any():
            self.run.step()
        self.steps += 1

    def _from_here(self) -> Problem:
        """The problem, starting where the run is."""
        if self.run.z is None:
            return replace(self.problem, start=self.run.x.detach().clone(), latents=None)
        return replace(self.problem, start=None, latents=self.run.v.detach().clone())

    def _begun(self, problem: Problem) -> Run:
        """A run of the solver at the present frequencies."""
        if self.last:
            return self.settings.solver.begin(problem)
        whole = problem.forward
        physics = whole.physics.with_lowpass(self.settings.frequencies[self.scale])
        forward = Forward(physics, whole.images, whole.differentiable, whole.calls)
        y = physics.lowpassed(problem.y)
        return self.settings.solver.begin(replace(problem, forward=forward, y=y))

    def warnings(self) -> list[str]:
        """Those of the last run; before it, that there are data which were not used."""
        if self.last:
            return list(own_warnings(self.run))
        reason = (
            f"only data up to {self.settings.frequencies[self.scale]:g} Hz were used: it takes "
            f"more than {self.settings.before} iterations"
        )
        return [Warned(reason, "low_frequencies")] if self.finite.any() else []

    def state_dict(self) -> dict[str, Any]:
        """State of the present run, and where it is on the way."""
        progress = {"scale": self.scale, "steps": self.steps, "sound": self.sound}
        return {**progress, "run": self.run.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        moved = state["scale"] != self.scale
        self.scale, self.steps, self.sound = (state[key] for key in ("scale", "steps", "sound"))
        if moved:
            self.run = self._begun(self._from_here())
        self.run.load_state_dict(state["run"])
