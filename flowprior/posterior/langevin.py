"""Langevin dynamics: exact draws of the posterior, if the chains run for long enough."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_choice, check_integer, check_number
from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.descent import Values, chosen
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver
from flowprior.inversion.warned import Warned
from flowprior.physics.noise import Noise
from flowprior.posterior.adaptation import StepSizes, square_root, window_ends
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.diagnostics import effective_draws, r_hat
from flowprior.posterior.laplace import LARGEST, SEARCHES, whitened
from flowprior.posterior.likelihood import (
    Likelihood,
    descended,
    drawn,
    log_normal,
    normal_draws,
    starts,
)

MIXED = 1.05
"""R-hat above which chains do not agree."""
FEW = 100
"""Effective draws below which a standard deviation is off by 7 % and more."""
_STEP, _SAMPLE, _START = 1, 2, 3
"""What random numbers are for."""


_REMEDIES = {
    "diagonal": 'more iterations, a longer warm_up, more leapfrog steps, or metric="dense"',
    "dense": "more iterations, a longer warm_up, more leapfrog steps",
    "whitened": "more iterations or more leapfrog steps",
}


@dataclass(frozen=True)
class Langevin(Solver):
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

    chains: int = 4
    warm_up: int = 300
    leapfrog: int = 8
    thin: int = 1
    metric: Literal["diagonal", "dense", "whitened"] = "diagonal"
    acceptance: float = 0.8
    descent_iterations: int = 30
    misfit: Noise | None = None

    needs = ("generate",)

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("chains", self.chains, least=2)
        for name in ("warm_up", "leapfrog", "thin"):
            check_integer(name, getattr(self, name), least=1)
        check_choice("metric", self.metric, ("diagonal", "dense", "whitened"))
        check_number("acceptance", self.acceptance, least=0.1, most=0.99)
        check_integer("descent_iterations", self.descent_iterations, least=0)
        check_noise("misfit", self.misfit)

    @property
    def posterior_after(self) -> int:
        """The iteration of the first draw that is kept."""
        return self.warm_up + self.thin

    def start(self, problem: Problem) -> Tensor:
        """Latents (B·chains, n) to begin from; those of one image are adjacent."""
        return starts(problem, self.misfit, self.chains)

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
        w = normal_draws(problem, (0, _START), self.chains)
        z = by_rows(found.latents, w, torch.arange(len(w), device=w.device))
        return LangevinRun(self, problem, z.flatten(0, 1), found.root)


class _Point(NamedTuple):
    """Where chains are, and what is known there; (B, chains, ...) each."""

    z: Tensor
    x: Tensor
    gradient: Tensor
    misfit: Tensor
    log_prior: Tensor

    @property
    def energy(self) -> Tensor:
        """U."""
        return self.misfit - self.log_prior


class LangevinRun:
    """The batch of a `Langevin`."""

    optimizer = None
    averages = True

    def __init__(
        self, solver: Langevin, problem: Problem, v: Tensor, root: Tensor | None = None
    ) -> None:
        self.solver, self.problem, self.iteration = solver, problem, 0
        self.likelihood = Likelihood(problem, solver.misfit, type(solver).__name__)
        self.v = v
        z = v.unflatten(0, (-1, solver.chains)).clone()
        dense = solver.metric != "diagonal"
        size = rows_per_call(self._point, z[:1], problem.rows[:1])
        self.rows_per_call = 1 if dense else size
        self.point = by_rows(self._point, z, problem.rows, size=self.rows_per_call)
        unit = torch.eye(z.shape[-1]).to(z) if dense else z.new_ones(z.shape[-1])
        self.root = unit.expand(len(z), *unit.shape) if root is None else root
        self.steps = StepSizes(self.point.energy[:, 0], solver.acceptance)
        self.accepted = torch.ones_like(self.steps.now)
        self.kept: list[Tensor] = []
        self.x = self.point.x.mean(1)
        self.finite = self.point.energy.isfinite().all(1)
        given = problem.latents
        self.together = root is None and given is not None and len(given) == len(z)
        self._known: tuple[int, Tensor, Tensor] | None = None

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
        """Means over the chains, rate of acceptance and step size."""
        means = {"misfit": self.point.misfit.mean(1), "log_prior": self.point.log_prior.mean(1)}
        return {**means, "acceptance": self.accepted, "step_size": self.steps.now}

    def step(self) -> None:
        """Make one iteration of all chains, and learn from it in the warm-up."""
        self.iteration += 1
        self._move()
        warm_up = self.solver.warm_up
        if self.iteration <= warm_up:
            self._learn()
            self.x = self.point.x.mean(1)
        elif (self.iteration - warm_up) % self.solver.thin == 0:
            self.kept.append(self.point.z)
            self.x = self.x + (self.point.x.mean(1) - self.x) / len(self.kept)

    def _move(self) -> None:
        velocity, uniform = self._random()
        # Trajectories of one length would come back to where they began in some directions.
        step = self.steps.now[:, None] * (0.4 + 0.8 * uniform[..., 0])
        arguments = self.point.z, self.point.gradient, velocity, step.to(velocity), self.root
        size = self.rows_per_call
        new, change = by_rows(self._trajectory, *arguments, self.problem.rows, size=size)
        log_ratio = self.point.energy - new.energy - change
        probability = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
        accept = (uniform[..., 1] < probability) & self.finite[:, None]
        flat = accept.flatten()
        pairs = zip(new, self.point, strict=True)
        taken = [chosen(flat, n.flatten(0, 1), o.flatten(0, 1)) for n, o in pairs]
        self.point = _Point(*(part.unflatten(0, accept.shape) for part in taken))
        self.accepted = probability.mean(1)
        self.v.copy_(self.point.z.flatten(0, 1))

    def _trajectory(
        self,
        z: Tensor,
        gradient: Tensor,
        velocity: Tensor,
        step: Tensor,
        root: Tensor,
        rows: Tensor,
    ) -> tuple[_Point, Tensor]:
        """The end of a trajectory, and by how much ½‖velocity‖² has grown."""
        step, before = step[..., None], velocity
        for _ in range(self.solver.leapfrog):
            half = velocity - step / 2 * _times(gradient, root)
            z = z + step * _times(half, root.mT if root.ndim == 3 else root)
            point = self._point(z, rows)
            gradient = point.gradient
            velocity = half - step / 2 * _times(gradient, root)
        return point, log_normal(before) - log_normal(velocity)

    def _point(self, z: Tensor, rows: Tensor) -> _Point:
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x, misfit = self.likelihood(z, rows)
            log_prior = log_normal(z)
            (gradient,) = torch.autograd.grad((misfit - log_prior).sum(), z)
        return _Point(z.detach(), x.detach(), gradient, misfit.detach(), log_prior.detach())

    def _random(self) -> tuple[Tensor, Tensor]:
        """Velocities (B, chains, n) and uniform numbers (B, chains, 2) of this iteration."""
        shape = self.point.z.shape[1:]

        def draw(generator: torch.Generator) -> Tensor:
            normal = torch.randn(shape, generator=generator, dtype=torch.float64)
            uniform = torch.rand(shape[0], 2, generator=generator, dtype=torch.float64)
            return torch.cat([normal, uniform], 1)

        normal, uniform = drawn(self.problem, (self.iteration, _STEP), draw).split([shape[1], 2], 2)
        return normal.to(self.point.z), uniform

    def _learn(self) -> None:
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
                f"the warm-up takes {self.solver.warm_up} iterations: take more iterations, or a "
                "smaller warm_up; there is no posterior"
            )
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
        remedy = _REMEDIES[self.solver.metric]
        if apart.any():
            size = worst[apart].max()
            reason = f"the chains do not agree (R-hat up to {size:.3g}, above {MIXED}): it takes "
            yield Warned(reason + remedy, "chains_apart", apart, size)
        few = self.finite & ~apart & ~unknown & (effective < FEW)
        if few.any():
            size = effective[few].min()
            reason = f"as few as {size:.0f} effective draws: it takes {remedy}"
            yield Warned(reason, "few_draws", few, -size)

    def state_dict(self) -> dict[str, Any]:
        """Chains, kept draws and what was learned."""
        return {
            **{name: getattr(self, name) for name in _STATE},
            "point": list(self.point),
            "steps": self.steps.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.point = _Point(*state["point"])
        self.steps.load_state_dict(state["steps"])
        self.v.copy_(self.point.z.flatten(0, 1))


_STATE = ("iteration", "x", "root", "accepted", "kept", "finite")


def _times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors (k, m, n) times full (k, n, n) or diagonal (k, n) matrices."""
    return vectors @ matrix if matrix.ndim == 3 else vectors * matrix[:, None]


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

        places = drawn(problem, (0, _SAMPLE), choose)
        return torch.stack([row[place] for row, place in zip(pooled, places, strict=True)])
