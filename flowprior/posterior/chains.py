"""Markov chains in the latents of a prior: what samplers share."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.diagnostics import effective_draws, r_hat
from flowprior.posterior.ensemble import Ensemble, KeptDraws, Point
from flowprior.posterior.likelihood import starts

MIXED = 1.05
"""R-hat above which chains do not agree."""
FEW = 100
"""Effective draws below which a standard deviation is off by 7 % and more."""


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


class ChainRun(Ensemble):
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

    remedy = "more iterations or a longer warm_up"
    """What it takes where chains do not agree."""
    STATE = ("kept",)

    def __init__(
        self, solver: Sampler, problem: Problem, v: Tensor, apart: bool = False, alone: bool = False
    ) -> None:
        super().__init__(problem, solver.misfit, type(solver).__name__, v, solver.chains, alone)
        self.solver = solver
        self.kept: list[Tensor] = []
        given = problem.latents
        self.together = not apart and given is not None and len(given) == len(v) // solver.chains
        self._known: tuple[int, Tensor, Tensor] | None = None

    @abstractmethod
    def move(self) -> None:
        """Make one iteration of all chains: set `point`."""

    def learn(self) -> None:
        """Learn from where the chains are, after each iteration of the warm-up; nothing here."""

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
        sound = self.point.energy().isfinite() & self.point.gradient.isfinite().all(2)
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

    def state_dict(self) -> dict[str, Any]:
        """Chains, kept draws and what was learned."""
        return {**super().state_dict(), "kept": list(self.kept)}


def diagnosed(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Largest R-hat and smallest number of effective draws of latents (N, B, chains, n), (B,)."""
    rows = [draws[:, row] for row in range(draws.shape[1])]
    worst = torch.stack([r_hat(row).amax() for row in rows])
    return worst, torch.stack([effective_draws(row).amin() for row in rows])


class ChainPosterior(KeptDraws):
    """Draws of Markov chains.

    Attributes:
        draws: latents (N, B, chains, n).
        r_hat: largest R-hat of the latents of each image, (B,).
        effective: smallest number of effective draws of them, (B,).
    """

    def __init__(self, problem: Problem, draws: Tensor, r_hat: Tensor, effective: Tensor) -> None:
        super().__init__(problem, draws.transpose(0, 1).flatten(1, 2))
        self.draws, self.r_hat, self.effective = draws, r_hat, effective
