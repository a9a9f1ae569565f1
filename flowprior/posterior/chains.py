"""Markov chains in the latents of a prior: what samplers share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.diagnostics import effective_draws, r_hat
from flowprior.posterior.likelihood import Likelihood, drawn, log_normal, starts

MIXED = 1.05
"""R-hat above which chains do not agree."""
FEW = 100
"""Effective draws below which a standard deviation is off by 7 % and more."""
STEP, SAMPLE, START = 1, 2, 3
"""What random numbers are for."""


@dataclass(frozen=True, kw_only=True)
class Sampler(Solver):
    """A solver whose run is a `ChainRun`: a frozen dataclass that adds its own options.

    Args:
        chains: of each image, at least 2; from starts of their own, unless one is given.
        warm_up: number of iterations before draws are kept.
        thin: every so many iterations draws are kept.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    chains: int = 4
    warm_up: int = 300
    thin: int = 1
    misfit: Noise | None = None
    needs: ClassVar[tuple[str, ...]] = ("generate",)

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("chains", self.chains, least=2)
        for name in ("warm_up", "thin"):
            check_integer(name, getattr(self, name), least=1)
        check_noise("misfit", self.misfit)

    @property
    def posterior_after(self) -> int:
        """The iteration of the first draw that is kept."""
        return self.warm_up + self.thin

    def start(self, problem: Problem) -> Tensor:
        """Latents (B·chains, n) to begin from and to move; those of one image are adjacent.

        A `Parameter` that the problem was given, as by `PosteriorModule`, is moved itself.
        """
        v = starts(problem, self.misfit, self.chains)
        return (v if isinstance(v, nn.Parameter) else v.clone()).detach()


class Point(NamedTuple):
    """Where chains are, and what is known there; (B, chains, ...) each.

    z, x: latents and their images; gradient: of U, (B, chains, n); misfit, log_prior: (B, chains).
    """

    z: Tensor
    x: Tensor
    gradient: Tensor
    misfit: Tensor
    log_prior: Tensor

    @property
    def energy(self) -> Tensor:
        """U."""
        return self.misfit - self.log_prior


class ChainRun(ABC):
    """The batch of a sampler, as a `Run`: a subclass moves the chains, and learns in the warm-up.

    Attributes:
        point: where the chains are.
        kept: latents (B, chains, n) of the draws that are kept.
        finite: rows whose chains have stayed finite, (B,).

    Args:
        solver: with its options.
        problem: the batch.
        v: latents (B·chains, n) to begin from, those of one image adjacent; moved in place.
        apart: whether the chains of an image began apart from each other whatever was given.
        alone: one row in each call, where more would not be exact.
    """

    optimizer = None
    averages = True
    remedy = "more iterations or a longer warm_up"
    """What it takes where chains do not agree."""
    STATE: ClassVar[tuple[str, ...]] = ("iteration", "x", "kept", "finite")
    """Attributes that checkpoints hold besides `point`; a subclass names its own."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.STATE, tuple):
            raise TypeError(f"{cls.__name__}.STATE must be a tuple of names, got {cls.STATE!r}")

    def __init__(
        self, solver: Sampler, problem: Problem, v: Tensor, apart: bool = False, alone: bool = False
    ) -> None:
        self.solver, self.problem, self.iteration = solver, problem, 0
        self.likelihood = Likelihood(problem, solver.misfit, type(solver).__name__)
        self.v = v
        z = v.unflatten(0, (-1, solver.chains)).clone()
        size = rows_per_call(self.at, z[:1], problem.rows[:1])
        self.rows_per_call = 1 if alone else size
        self.point = by_rows(self.at, z, problem.rows, size=self.rows_per_call)
        self.kept: list[Tensor] = []
        self.x = self.point.x.mean(1)
        self.finite = self.point.energy.isfinite().all(1)
        given = problem.latents
        self.together = not apart and given is not None and len(given) == len(z)
        self._known: tuple[int, Tensor, Tensor] | None = None

    @abstractmethod
    def move(self) -> None:
        """Make one iteration of all chains: set `point`."""

    def learn(self) -> None:  # noqa: B027
        """Learn from where the chains are, after each iteration of the warm-up; nothing here."""

    @property
    def z(self) -> Tensor:
        """Latents of the first chain, (B, *latent.shape)."""
        return self.problem.prior.latent.shaped(self.point.z[:, 0])

    @property
    def active(self) -> Tensor:
        """All finite rows."""
        return self.finite

    @property
    def values(self) -> Values:
        """Means over the chains."""
        return {"misfit": self.point.misfit.mean(1), "log_prior": self.point.log_prior.mean(1)}

    def step(self) -> None:
        """Make one iteration of all chains."""
        self.iteration += 1
        before = self.point
        self.move()
        sound = self.point.energy.isfinite() & self.point.gradient.isfinite().all(2)
        self.finite = self.finite & sound.all(1)
        if not self.finite.all():  # these stay where they were
            pairs = zip(self.point, before, strict=True)
            self.point = Point(*(chosen(self.finite, new, old) for new, old in pairs))
        self.v.copy_(self.point.z.flatten(0, 1))
        warm_up = self.solver.warm_up
        if self.iteration <= warm_up:
            self.learn()
            self.x = self.point.x.mean(1)
        elif (self.iteration - warm_up) % self.solver.thin == 0:
            self.kept.append(self.point.z.clone())
            self.x = self.x + (self.point.x.mean(1) - self.x) / len(self.kept)

    def at(self, z: Tensor, rows: Tensor) -> Point:
        """What is known at latents z (k, chains, n) of the images `rows`."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x, misfit = self.likelihood(z, rows)
            log_prior = log_normal(z)
            (gradient,) = torch.autograd.grad((misfit - log_prior).sum(), z)
        return Point(z.detach(), x.detach(), gradient, misfit.detach(), log_prior.detach())

    def posterior(self) -> "ChainPosterior | None":
        """The kept draws, if there are any."""
        if self.iteration <= self.solver.warm_up or not self.kept:
            return None
        return ChainPosterior(self.problem, torch.stack(self.kept), *self._diagnosed())

    def _diagnosed(self) -> tuple[Tensor, Tensor]:
        """Largest R-hat and smallest number of effective draws of each image."""
        if self._known is None or self._known[0] != self.iteration:
            self._known = (self.iteration, *diagnosed(torch.stack(self.kept)))
        return self._known[1:]

    def warnings(self) -> Iterator[str]:
        """What is wrong with the chains."""
        if self.iteration <= self.solver.warm_up or not self.kept:
            reason = (
                f"the first draw is kept after {self.solver.posterior_after} iterations (warm_up + "
                "thin): take more iterations, or a smaller warm_up; there is no posterior"
            )
            if self.finite.any():
                yield Warned(reason, "no_posterior")
            return
        if self.together:
            reason = (
                "all chains of an image began at the given start, so that R-hat cannot tell "
                "whether they have found all of the posterior: leave out the start"
            )
            yield Warned(reason, "one_start")
        worst, effective = self._diagnosed()
        unknown = self.finite & worst.isnan()
        if unknown.any():
            reason = (
                f"{len(self.kept)} kept draws of each chain, too few or all equal: whether the "
                "chains agree cannot be told"
            )
            yield Warned(reason, "mixing_unknown", unknown)
        apart = self.finite & (worst > MIXED)
        if apart.any():
            size = worst[apart].max()
            reason = f"the chains do not agree (R-hat up to {size:.3g}, above {MIXED}): it takes "
            yield Warned(reason + self.remedy, "chains_apart", apart, size)
        few = self.finite & ~apart & ~unknown & (effective < FEW)
        if few.any():
            size = effective[few].min()
            reason = f"as few as {size:.0f} effective draws: it takes {self.remedy}"
            yield Warned(reason, "few_draws", few, -size)

    def _state_names(self) -> list[str]:
        """What a class and those it is made of have to keep."""
        return [name for kind in type(self).__mro__ for name in vars(kind).get("STATE", ())]

    def state_dict(self) -> dict[str, Any]:
        """Chains, kept draws and what was learned."""
        own = {name: getattr(self, name) for name in self._state_names()}
        return {**own, "kept": list(self.kept), "point": list(self.point)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        for name in self._state_names():
            setattr(self, name, state[name])
        self.point = Point(*state["point"])
        self.v.copy_(self.point.z.flatten(0, 1))


def diagnosed(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Largest R-hat and smallest number of effective draws of latents (N, B, chains, n), (B,)."""
    rows = [draws[:, row] for row in range(draws.shape[1])]
    worst = torch.stack([r_hat(row).amax() for row in rows])
    return worst, torch.stack([effective_draws(row).amin() for row in rows])


class ChainPosterior(LatentPosterior):
    """Draws of Markov chains.

    Attributes:
        draws: latents (N, B, chains, n).
        r_hat: largest R-hat of the latents of each image, (B,).
        effective: smallest number of effective draws of them, (B,).
    """

    def __init__(self, problem: Problem, draws: Tensor, r_hat: Tensor, effective: Tensor) -> None:
        super().__init__(problem)
        self.draws, self.r_hat, self.effective = draws, r_hat, effective

    def draw(self, count: int, problem: Problem) -> Tensor:
        """Choose kept draws: different ones of each image, as far as there are enough."""
        pooled = self.draws.transpose(0, 1).flatten(1, 2)
        known = pooled.shape[1]

        def choose(generator: torch.Generator) -> Tensor:
            rounds = -(-count // known)
            turns = [torch.randperm(known, generator=generator) for _ in range(rounds)]
            return torch.cat(turns)[:count]

        places = drawn(problem, (0, SAMPLE), choose)
        return torch.stack([row[place] for row, place in zip(pooled, places, strict=True)])
