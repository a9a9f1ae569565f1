"""Solvers over latents: MAP, with CSGM and GlowIP as special cases."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from flowprior.argument_types import check_fields, check_types
from flowprior.checks import (
    check_choice,
    check_integer,
    check_no_effect,
    check_number,
    check_positive,
)
from flowprior.inversion.batch_invariant import batch_invariant
from flowprior.inversion.descent import AdamRun, LBFGSRun, Optimizer
from flowprior.inversion.forward import Forward
from flowprior.inversion.latent_terms import LatentTerms, Layers, check_layers, layers_by_part
from flowprior.inversion.probe import check_prior
from flowprior.inversion.problem import Problem, check_noise
from flowprior.inversion.solving import Solver, advance
from flowprior.physics.noise import Gaussian, Laplace, Noise
from flowprior.priors import Prior, require

Penalty = Literal["log_density", "latent_norm", "none"]
Unit = Literal["nats", "bits_per_dim"]


@dataclass(frozen=True)
class MAP(Solver):
    r"""Minimise misfit(A(x), y) − β·log p over v, with x = G(z) and z = h(v).

    The misfit is the negative log-likelihood of the data under their noise, so that β = 1 is Bayes'
    rule. log p is log N(z; 0, I) ("latent_norm": the most probable latent, for any generator),
    log p_X(x) = log N(z; 0, I) − log|det ∂G/∂z| ("log_density": the most probable image, which is
    often an untypically smooth one), or nothing ("none"). Images are not clamped, because clamped
    pixels have no gradient. Each image has its own line search, step size and end.

    Reference: Li & Denli, Traversing within the Gaussian typical set (2021), eq. 1–3. There the
    misfit has σ = 1/255, and β is 1000 per bit per dimension.

    Args:
        beta: β ≥ 0.
        beta_unit: β counts per nat of the image, or per bit per dimension of it.
        penalty: "latent_norm", "log_density" or "none".
        misfit: noise model to fit the data by; that of the data by default.
        reparameterization: h, such as `Gaussianization.robust()`, or one for each named part of the
            latent; z = v by default.
        optimizer: "lbfgs" or "adam".
        learning_rate: of Adam.
        tolerance: an image ends when 20 iterations lower its loss by at most this part of it. With
            0 L-BFGS goes on to the last digit, and Adam to the maximum number of iterations.
        start_scale: standard deviation of the random start, v ~ N(0, start_scale² I), one draw for
            all images. 0 starts at v = 0.
        projection_iterations: maximum number for finding the latents of starting images.

    Raises:
        ValueError: names the option.
    """

    beta: float = 1.0
    beta_unit: Unit = "nats"
    penalty: Penalty = "latent_norm"
    misfit: Noise | None = None
    reparameterization: Layers | None = None
    optimizer: Optimizer = "lbfgs"
    learning_rate: float = 0.05
    tolerance: float = 0.0
    start_scale: float = 1.0
    projection_iterations: int = 100

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("beta", self.beta, least=0)
        check_choice("beta_unit", self.beta_unit, ("nats", "bits_per_dim"))
        check_choice("penalty", self.penalty, ("latent_norm", "log_density", "none"))
        check_choice("optimizer", self.optimizer, ("lbfgs", "adam"))
        check_positive("learning_rate", self.learning_rate)
        check_number("tolerance", self.tolerance, least=0, most=1)
        check_number("start_scale", self.start_scale, least=0)
        check_integer("projection_iterations", self.projection_iterations, least=0)
        check_noise("misfit", self.misfit)
        check_layers(self.reparameterization)
        if self.optimizer == "lbfgs":
            check_no_effect(self, 'optimizer="lbfgs"', "learning_rate")
        if self.penalty == "none":
            check_no_effect(self, 'penalty="none"', "beta_unit", *(["beta"] if self.beta else []))

    @property
    def needs(self) -> tuple[str, ...]:
        """`decode` for the log density, otherwise `generate`."""
        return ("decode",) if self.penalty == "log_density" else ("generate",)

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`; also checks the names of latent parts."""
        who = f"{who}{type(self).__name__}: penalty={self.penalty}"
        require(prior, self.needs, who, remedy="use latent_norm or none")
        layers_by_part(self.reparameterization, prior)

    def begin(self, problem: Problem) -> LBFGSRun | AdamRun:
        """Start from given latents, the latents of given images, or a draw of N(0, I)."""
        v = self.start(problem) if problem.latents is None else problem.latents
        if len(v) != len(problem.y):
            raise ValueError(f"latents must have {len(problem.y)} rows, got {len(v)}")
        if not isinstance(v, nn.Parameter):
            v = nn.Parameter(v.detach().clone().to(problem.like))
        terms = LatentTerms(self, problem)
        if self.optimizer == "lbfgs":
            return LBFGSRun(terms, v, self.tolerance)
        return AdamRun(terms, v, self.learning_rate, self.tolerance)

    def start(self, problem: Problem) -> Tensor:
        """Latents v (B, n) to start from."""
        latent, like = problem.prior.latent, problem.like
        if problem.start is None:
            return self.start_scale * latent.draw(len(problem.y), seed=problem.seed, like=like)
        return self._project(problem, self._projection_weight(problem))

    def weight(self, image_shape: tuple[int, int, int]) -> float:
        """β per nat of an image."""
        per_bit = math.prod(image_shape) * math.log(2)
        return self.beta / (per_bit if self.beta_unit == "bits_per_dim" else 1.0)

    def _projection_weight(self, problem: Problem) -> float:
        """β of the projection: Li & Denli's eq. 39 has the inversion's β, but no ½."""
        noise = problem.misfit(self.misfit, type(self).__name__)
        if self.penalty != "log_density" or not isinstance(noise, Gaussian):
            return 0.0
        return self.weight(problem.image_shape) / (1 / noise.deviation) ** 2 / 2

    def _project(self, problem: Problem, weight: float) -> Tensor:
        return project_to_latents(
            problem.prior,
            problem.start,
            reparameterization=self.reparameterization,
            beta=weight,
            iterations=self.projection_iterations,
            condition=problem.condition,
            seed=problem.seed,
        )


def csgm(gamma: float = 0.1, learning_rate: float = 5e-3) -> MAP:
    """‖A G(z) − y‖² + γ‖z‖² on images in [−1, 1], from z ~ N(0, I), by Adam (Bora et al., 2017).

    The published method is this one within `Restarts`.
    """
    check_types(csgm, locals())
    return _latent_norm(gamma, learning_rate, start_scale=1.0)


def glow_ip(gamma: float = 0.01, learning_rate: float = 5e-3) -> MAP:
    """As `csgm`, but from z = 0: GlowIP (Asim et al., 2020)."""
    check_types(glow_ip, locals())
    return _latent_norm(gamma, learning_rate, start_scale=0.0)


def _latent_norm(gamma: float, learning_rate: float, start_scale: float) -> MAP:
    # ½‖r/σ‖² with σ = ½ is half of Σr² where r is twice as large, and −log N has the other half.
    return MAP(
        beta=gamma,
        penalty="latent_norm",
        misfit=Gaussian(0.5),
        optimizer="adam",
        learning_rate=learning_rate,
        start_scale=start_scale,
    )


def l1_map(alpha: float = 0.05, learning_rate: float = 5e-3) -> MAP:
    r"""Minimise Σ|A G(z) − y| + α·NLL(z) on images in [−1, 1], by Adam from z ~ N(0, 0.01 I).

    NLL(z) = −log N(z; 0, I) + log|det ∂G/∂z| is that of the image, in nats.

    Reference: Chavez, Generative flows as a general purpose solution for inverse problems (2022).
    """
    # The sum of |r| is twice as large on [−1, 1] as on [0, 1], so that the scale is ½.
    check_types(l1_map, locals())
    return MAP(
        beta=alpha,
        penalty="log_density",
        misfit=Laplace(0.5),
        optimizer="adam",
        learning_rate=learning_rate,
        start_scale=0.1,
    )


def project_to_latents(
    prior: Prior,
    images: Tensor,
    *,
    reparameterization: Layers | None = None,
    beta: float = 0.0,
    iterations: int = 100,
    condition: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Find latents v (B, n) whose images are closest to given ones (B, C, H, W) in [0, 1].

    Minimises ½‖G(h(v)) − x₀‖² − β log p_X(G(h(v))), β per nat, by L-BFGS from one draw of N(0, I).
    If all rows are the same image, such as a grey one, and the same condition, it is done once.

    Reference: Li & Denli (2021), eq. 39–40, whose misfit has no ½, so that β there is twice this
    one.
    """
    check_types(project_to_latents, locals())
    penalty = "log_density" if beta else "none"
    solver = MAP(beta=beta, penalty=penalty, reparameterization=reparameterization)
    solver.check(prior, "project_to_latents: ")
    check_prior(prior, solver.needs, condition)
    count = len(images)
    if all(one is None or (len(one) == count and _all_equal(one)) for one in (images, condition)):
        images, condition = images[:1], None if condition is None else condition[:1]
    problem = Problem(
        forward=Forward(lambda x: x),
        y=images,
        image_shape=prior.image_shape,
        noise=Gaussian(1.0),
        prior=prior,
        condition=condition,
        seed=seed,
    )
    with batch_invariant():
        run = solver.begin(problem)
        advance(run, iterations)
    return run.v.detach().expand(count, -1).clone()


def _all_equal(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())
