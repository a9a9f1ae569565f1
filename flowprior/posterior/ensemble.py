"""Several latents of each image that move together: what chains and particles share."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.likelihood import Likelihood, drawn, log_normal

STEP, SAMPLE, START, RESAMPLE = 1, 2, 3, 5
"""What random numbers are for."""


class Point(NamedTuple):
    """Where an ensemble is, and what is known there; (B, m, ...) each.

    z, x: latents and their images; gradient: of U, (B, m, n); misfit, log_prior: (B, m).
    """

    z: Tensor
    x: Tensor
    gradient: Tensor
    misfit: Tensor
    log_prior: Tensor

    def energy(self, power: Tensor | float = 1.0) -> Tensor:
        """U = φ·misfit − log_prior (B, m), for a power φ of the likelihood, (B,) or one number."""
        power = power[:, None] if isinstance(power, Tensor) else power
        return power * self.misfit - self.log_prior

    def taken(self, accept: Tensor, new: "Point") -> "Point":
        """The new point where accept (B, m) says so, and this one elsewhere."""
        flat = accept.flatten()
        pairs = zip(new, self, strict=True)
        parts = [chosen(flat, n.flatten(0, 1), o.flatten(0, 1)) for n, o in pairs]
        return Point(*(part.unflatten(0, accept.shape) for part in parts))


class Ensemble(ABC):
    """Base of the batch of a sampler, as a `Run`.

    Attributes:
        point: where the ensemble is.
        finite: rows that have stayed finite, (B,).

    Args:
        problem: the batch.
        misfit: noise model to fit the data by, or None for that of the data.
        who: name of the solver, for messages.
        v: latents (B·m, n) to begin from, those of one image adjacent; moved in place.
        count: m.
        alone: one row in each call, where more would not be exact.
    """

    optimizer = None
    averages = True
    STATE: ClassVar[tuple[str, ...]] = ("iteration", "x", "finite")
    """Attributes that checkpoints hold besides `point`; a subclass names its own."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.STATE, tuple):
            raise TypeError(f"{cls.__name__}.STATE must be a tuple of names, got {cls.STATE!r}")

    def __init__(
        self,
        problem: Problem,
        misfit: Noise | None,
        who: str,
        v: Tensor,
        count: int,
        alone: bool = False,
    ) -> None:
        self.problem, self.iteration = problem, 0
        self.likelihood = Likelihood(problem, misfit, who)
        self.v = v
        z = v.unflatten(0, (-1, count)).clone()
        size = rows_per_call(self.at, z[:1], problem.rows[:1])
        self.rows_per_call = 1 if alone else size
        self.point = by_rows(self.at, z, problem.rows, size=self.rows_per_call)
        self.x = self.point.x.mean(1)
        self.finite = self.point.energy().isfinite().all(1)

    @abstractmethod
    def step(self) -> None:
        """Make one iteration."""

    @property
    @abstractmethod
    def active(self) -> Tensor:
        """Rows that still change, (B,)."""

    @property
    @abstractmethod
    def values(self) -> Values:
        """What curves show, (B,) each."""

    @property
    def z(self) -> Tensor:
        """Latents of the first member, (B, *latent.shape)."""
        return self.problem.prior.latent.shaped(self.point.z[:, 0])

    def at(self, z: Tensor, rows: Tensor) -> Point:
        """What is known at latents z (k, m, n) of the images `rows`."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x, misfit = self.likelihood(z, rows)
            log_prior = log_normal(z)
            (gradient,) = torch.autograd.grad((misfit - log_prior).sum(), z)
        return Point(z.detach(), x.detach(), gradient, misfit.detach(), log_prior.detach())

    def state_dict(self) -> dict[str, Any]:
        """Where it is, and what the class and its base classes have to keep."""
        return {**{name: getattr(self, name) for name in self._names()}, "point": list(self.point)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        for name in self._names():
            setattr(self, name, state[name])
        self.point = Point(*state["point"])
        self.v.copy_(self.point.z.flatten(0, 1))

    def _names(self) -> list[str]:
        return [name for kind in type(self).__mro__ for name in vars(kind).get("STATE", ())]


class KeptDraws(LatentPosterior):
    """Draws that are there already, as `kept`: latents (B, N, n)."""

    def __init__(self, problem: Problem, latents: Tensor) -> None:
        super().__init__(problem)
        self.kept = latents

    def draw(self, count: int, problem: Problem) -> Tensor:
        """Choose some of them: different ones of each image, as far as there are enough."""
        known = self.kept.shape[1]

        def choose(generator: torch.Generator) -> Tensor:
            rounds = -(-count // known)
            turns = [torch.randperm(known, generator=generator) for _ in range(rounds)]
            return torch.cat(turns)[:count]

        places = drawn(problem, (0, SAMPLE), choose)
        return torch.stack([row[place] for row, place in zip(self.kept, places, strict=True)])
