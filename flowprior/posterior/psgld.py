"""Preconditioned stochastic-gradient Langevin dynamics."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from flowprior.checks import check_number, check_positive
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import Values
from flowprior.inversion.problem import Problem
from flowprior.inversion.warned import Warned
from flowprior.posterior.chains import ChainRun, Sampler
from flowprior.posterior.ensemble import STEP
from flowprior.posterior.likelihood import normal_draws

FLOOR = 1e-5
"""Of the root mean square of gradients: λ of the reference."""
ACCEPTED = 0.8
"""Share of steps that a Metropolis test should accept: deviations are then off by some percent."""


@dataclass(frozen=True)
class PSGLD(Sampler):
    r"""Draw from the posterior of each image by Langevin steps scaled as those of RMSprop.

    The density of the latent z is exp(−U), U(z) = misfit(A(G(z)), y) + ½‖z‖². An iteration is

    .. math:: z \leftarrow z - \frac{\eta}{2}\,P\,\nabla U(z) + \sqrt{\eta P}\,\varepsilon,
        \qquad P = 1/(\lambda + \sqrt{V}), \qquad V \leftarrow \alpha V + (1 - \alpha) (\nabla U)^2

    elementwise, with ε ~ N(0, I), for each of the `chains`. V begins at the larger of 1, the
    curvature of the prior, and (∇U)². In the warm-up V follows each chain; after it, all chains of
    an image have its mean, which is fixed. The reference goes on to change it, without the term
    that this would need: draws are then wrong even for small steps. Nothing is rejected: draws are
    those of the posterior as η goes to 0. `Langevin` has no such error. "Stochastic" are gradients
    of operators that draw their sources anew in each call; others are exact.

    Estimated images are means of the kept draws, latents those of the first chain. Warnings as for
    `Langevin`, and where a Metropolis test would reject more than a fifth of the steps.

    Reference: Li, Chen, Carlson & Carin, Preconditioned stochastic gradient Langevin dynamics for
    deep neural networks (2016), algorithm 1.

    Args:
        step_size: η > 0.
        decay: α, at least 0 and below 1, in the warm-up.
        chains: of each image, at least 2; each starts at a draw of its own, unless one is given.
        warm_up: number of iterations before draws are kept.
        thin: every so many iterations draws are kept.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    step_size: float = 0.08
    decay: float = 0.99
    _: KW_ONLY
    thin: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("step_size", self.step_size)
        check_number("decay", self.decay, least=0, most=0.999999)

    def begin(self, problem: Problem) -> "PSGLDRun":
        """Start at draws of N(0, I), or at given latents."""
        return PSGLDRun(self, problem, self.start(problem))


class PSGLDRun(ChainRun):
    """The batch of a `PSGLD`."""

    STATE = ("square", "accepted")

    def __init__(self, solver: PSGLD, problem: Problem, v: Tensor) -> None:
        super().__init__(solver, problem, v)
        self.square = self.point.gradient.square().clamp_min(1)
        self.accepted = torch.ones_like(self.point.energy()[:, 0])

    @property
    def values(self) -> Values:
        """Means over the chains, and the share of steps that a Metropolis test would accept."""
        return {**super().values, "acceptance": self.accepted}

    def move(self) -> None:
        """Make a step of all chains."""
        solver, gradient, square = self.solver, self.point.gradient, self.square
        if self.iteration <= solver.warm_up:
            square = solver.decay * square + (1 - solver.decay) * gradient.square()
        pace = solver.step_size / (FLOOR + square.sqrt())
        noise = normal_draws(self.problem, (self.iteration, STEP), solver.chains)
        z = self.point.z - pace / 2 * gradient + pace.sqrt() * noise
        old, self.square = self.point, square
        self.point = new = by_rows(self.at, z, self.problem.rows, size=self.rows_per_call)
        after = self.iteration - solver.warm_up
        if after > 0:
            back = _log_density(old.z - new.z + pace / 2 * new.gradient, pace)
            forth = _log_density(new.z - old.z + pace / 2 * old.gradient, pace)
            ratio = old.energy() - new.energy() + back - forth
            share = ratio.clamp(max=0).exp().nan_to_num(nan=0.0).mean(1)
            self.accepted = self.accepted + (share - self.accepted) / after

    def learn(self) -> None:
        """At the end of the warm-up fix V."""
        if self.iteration == self.solver.warm_up:
            self.square = self.square.mean(1, keepdim=True).expand_as(self.square)

    def warnings(self) -> Iterator[str]:
        """What is wrong with the chains, and steps that are too large."""
        yield from super().warnings()
        large = self.finite & (self.accepted < ACCEPTED)
        if self.kept and large.any():
            share = self.accepted[large].min()
            reason = (
                f"a Metropolis test would accept as few as {100 * share:.0f} % of the steps: the "
                "draws are too wide; take a smaller step_size, and more iterations"
            )
            yield Warned(reason, "steps_large", large, -share)


def _log_density(step: Tensor, variance: Tensor) -> Tensor:
    """N(step; 0, variance) of (B, chains, n) up to a constant: logarithms (B, chains), float64."""
    return -0.5 * (step.double().square() / variance).sum(-1)
