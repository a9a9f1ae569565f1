"""Langevin dynamics: exact draws of the posterior, if the chains run for long enough."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from flowprior.checks import check_choice, check_integer, check_number
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem
from flowprior.physics.noise import Noise
from flowprior.posterior.adaptation import StepSizes, square_root, window_ends
from flowprior.posterior.chains import ChainRun, Sampler
from flowprior.posterior.ensemble import START, STEP, Point
from flowprior.posterior.hamiltonian import hamiltonian_move, velocities
from flowprior.posterior.laplace import LARGEST, SEARCHES, whitened
from flowprior.posterior.likelihood import descended, normal_draws, starts

_REMEDIES = {
    "diagonal": 'more iterations, a longer warm_up, more leapfrog steps, or metric="dense"',
    "dense": "more iterations, a longer warm_up, more leapfrog steps",
    "whitened": "more iterations or more leapfrog steps",
}


@dataclass(frozen=True)
class Langevin(Sampler):
    r"""Draw from the posterior of each image by Markov chains in the latent.

    The density of z is exp(−U), U(z) = misfit(A(G(z)), y) + ½‖z‖². An iteration of a chain draws a
    velocity from N(0, I), follows Hamilton's equations for `leapfrog` steps, and accepts the end
    with probability min(1, exp(H − H′)), H = U + ½‖velocity‖². With one step this is the
    Metropolis-adjusted Langevin algorithm. Each image has a step size ε of its own, learned from
    its own rate of acceptance, and coordinates of its own: z = S w, where S Sᵀ is the covariance
    of its draws so far, or the diagonal of it. Both are learned in the warm-up and then fixed. Or
    S Sᵀ is the covariance of the normal distribution that `Variational` begins with, from which
    the chains then start: where the data determine some latents much better than others, a warm-up
    of some ten iterations is enough then, to learn the step size.

    The estimated images are means of the kept draws, and the latents those of the first chain.
    Warnings name images whose chains do not agree (R-hat > 1.05) or that have fewer than 100
    effective draws; both numbers are with the posterior. Chains that all miss a part of the
    posterior agree: R-hat tells the less, the closer together they began, and whitened ones begin
    in one normal distribution.

    References: Roberts & Tweedie, Exponential convergence of Langevin distributions and their
    discrete approximations (1996); Neal, MCMC using Hamiltonian dynamics (2011); Hoffman & Gelman,
    The no-U-turn sampler (2014), for the warm-up.

    Args:
        chains: of each image, at least 2; from starts of their own, unless one is given.
        warm_up: number of iterations before draws are kept.
        leapfrog: steps of an iteration.
        thin: every so many iterations draws are kept.
        metric: "diagonal", or "dense" for latents of some hundred numbers at most, which are
            then rid of their correlations too; or "whitened", for latents of at most 1024.
        acceptance: rate of acceptance to reach, between 0 and 1.
        descent_iterations: for a probable latent, from which each chain starts: of L-BFGS, or,
            if whitened, as those of `Variational`.
        misfit: noise model to fit the data by; that of the data by default.

    Raises:
        ValueError: names the option.
    """

    _: KW_ONLY
    leapfrog: int = 8
    metric: Literal["diagonal", "dense", "whitened"] = "diagonal"
    acceptance: float = 0.8
    descent_iterations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("leapfrog", self.leapfrog, least=1)
        check_choice("metric", self.metric, ("diagonal", "dense", "whitened"))
        check_number("acceptance", self.acceptance, least=0.1, most=0.99)
        check_integer("descent_iterations", self.descent_iterations, least=0)

    def begin(self, problem: Problem) -> "LangevinRun":
        """Find a probable latent for each chain."""
        noise = problem.misfit(self.misfit, type(self).__name__)
        if self.metric == "whitened":
            return self._begin_whitened(problem, noise)
        v = descended(problem, self.misfit, self.chains, self.descent_iterations)
        return LangevinRun(self, problem, v.detach())

    def _begin_whitened(self, problem: Problem, noise: Noise) -> "LangevinRun":
        size = problem.prior.latent.size
        if size > LARGEST:
            raise ValueError(f'metric="whitened" takes latents of at most {LARGEST}, got {size}')
        begun = starts(problem, self.misfit, self.chains).detach().unflatten(0, (-1, self.chains))
        found = whitened(problem, noise, begun[:, :SEARCHES], self.descent_iterations)
        w = normal_draws(problem, (0, START), self.chains)
        z = by_rows(found.latents, w, torch.arange(len(w), device=w.device))
        return LangevinRun(self, problem, z.flatten(0, 1), found.root)


class LangevinRun(ChainRun):
    """The batch of a `Langevin`."""

    STATE = ("root", "accepted")

    def __init__(
        self, solver: Langevin, problem: Problem, v: Tensor, root: Tensor | None = None
    ) -> None:
        dense = solver.metric != "diagonal"
        super().__init__(solver, problem, v, apart=root is not None, alone=dense)
        z = self.point.z
        unit = torch.eye(z.shape[-1]).to(z) if dense else z.new_ones(z.shape[-1])
        self.root = unit.expand(len(z), *unit.shape) if root is None else root
        self.steps = StepSizes(self.point.energy()[:, 0], solver.acceptance)
        self.accepted = torch.ones_like(self.steps.now)

    @property
    def remedy(self) -> str:
        """See `ChainRun`."""
        return _REMEDIES[self.solver.metric]

    @property
    def values(self) -> Values:
        """Means over the chains, rate of acceptance and step size."""
        return {**super().values, "acceptance": self.accepted, "step_size": self.steps.now}

    def move(self) -> None:
        """Propose the ends of trajectories, and accept some."""
        problem, solver = self.problem, self.solver
        random = velocities(problem, (self.iteration, STEP), solver.chains)
        options = self.steps.now, self.root, torch.ones_like(self.steps.now), problem.rows
        move = partial(hamiltonian_move, self.at, solver.leapfrog, size=self.rows_per_call)
        new, probability = move(self.point, random, *options)
        pairs = zip(new, self.point, strict=True)
        self.point = Point(*(chosen(self.finite, part, old) for part, old in pairs))
        self.accepted = probability.mean(1)

    def learn(self) -> None:
        """Learn step sizes and coordinates."""
        self.steps.update(self.accepted)
        self.kept.append(self.point.z)
        known = self.solver.metric == "whitened"
        ended = self.iteration in window_ends(self.solver.warm_up) and not known
        if ended and len(self.kept) * self.solver.chains > 20:
            root = square_root(torch.stack(self.kept), self.solver.metric == "dense")
            self.root = chosen(self.finite, root, self.root)
            self.steps.restart()
        if ended or self.iteration == self.solver.warm_up:
            self.kept = []
        if self.iteration == self.solver.warm_up:
            self.steps.settle()

    def state_dict(self) -> dict[str, Any]:
        """Chains, kept draws and what was learned."""
        return {**super().state_dict(), "steps": self.steps.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        super().load_state_dict(state)
        self.steps.load_state_dict(state["steps"])
