"""Variational inference that starts from what a conditional flow has learned."""

from dataclasses import dataclass

from torch import Tensor

from flowprior.checks import check_no_effect, check_number
from flowprior.inversion.descent import Values
from flowprior.inversion.problem import Problem
from flowprior.posterior.laplace import Coordinates
from flowprior.posterior.likelihood import decoded, log_normal
from flowprior.posterior.variational import Variational, VariationalTerms
from flowprior.priors import Prior, require


@dataclass(frozen=True)
class Preconditioned(Variational):
    r"""Fit the draws of a conditional flow to data that it was not trained for.

    Draws x = T(u(t); y) go through the flow T, which was trained on pairs, and a map u of its
    latents for each image, which begins as the identity: the start is what `Amortised` gives, and
    if that is near, few iterations are left, with `draws` applications of operator and adjoint
    each. It minimises

    .. math:: E_t[\mathrm{misfit}(A(x), y) - \tau \log p_T(x \mid y) - \beta H],

    where H is −log of the density of the draws x. The result is a copy of the distribution
    :math:`p_T(x \mid y)^\tau \, p(y \mid x)`.

    With the density of the flow as the prior the data count twice: p_T(x | y) has their likelihood
    in it already, and p(y | x) is the same again, so that the result is too narrow at τ = 1 (which
    is the published formula). Where prior and likelihood are normal, the right τ is the share of
    the prior in the precision of the posterior that the flow has learned: near 0 for informative
    data, 1 for data that tell nothing. Or give a `density` of images, which takes the place of
    τ·log p_T(x | y): nothing counts twice then, whatever the flow was trained for, which is only
    where to start.

    The published method trains T itself further for one y. Here T stays as it is, and u is of a
    `family`: each image has its own, and the batch does not matter.

    Reference: Siahkoohi et al., Preconditioned training of normalizing flows for variational
    inference in inverse problems (2021), section 4.

    Args:
        start_scale: standard deviation of z at the start; 1 is that of the flow.
        descent_iterations: of L-BFGS from z = 0 before the start; with 0 the start is the flow's.
        tempering: τ in [0, 1].
        density: prior of images in place of that of the flow, with `log_prob`.

    Other options are those of `Variational`.

    Raises:
        ValueError: names the option.
    """

    whiten: bool | None = False
    start_scale: float = 1.0
    descent_iterations: int = 0
    tempering: float = 1.0
    density: Prior | None = None

    uses_start = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tempering", self.tempering, least=0, most=1)
        if self.density is not None:
            require(self.density, ["log_prob"], "Preconditioned: density")
            if self.density.conditional:
                raise ValueError(
                    "density must be one of images whatever the data, got a conditional "
                    f"{type(self.density).__name__}"
                )
            check_no_effect(self, "density", "tempering")

    @property
    def needs(self) -> tuple[str, ...]:
        """`decode`, unless the density of the flow is all of the prior: its determinant cancels."""
        return ("generate",) if self._plain else ("decode",)

    @property
    def _plain(self) -> bool:
        return self.density is None and self.tempering == 1 and self.beta == 1

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`; also checks that the density is one of such images."""
        super().check(prior, who)
        if self.density is not None and self.density.image_shape != prior.image_shape:
            raise ValueError(
                f"{who}Preconditioned: density is one of images {self.density.image_shape}, the "
                f"prior makes images {prior.image_shape}"
            )

    def start(self, problem: Problem, count: int = 1) -> Tensor:
        """Latents (B·count, n) in the middle of the flow's."""
        return problem.like.new_zeros(len(problem.y) * count, problem.prior.latent.size)

    def terms(self, problem: Problem, coordinates: Coordinates | None) -> VariationalTerms:
        """The objective of a batch."""
        kind = VariationalTerms if self._plain else ImageTerms
        return kind(self, problem, coordinates)


class ImageTerms(VariationalTerms):
    """The objective with densities of images in place of those of latents."""

    def of_latents(self, z: Tensor, entropy: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """See `VariationalTerms`."""
        x, log_det = decoded(self.problem, z, rows)
        entropy = entropy + log_det
        terms = {"misfit": self.likelihood.misfits(x, rows), "entropy": entropy}
        return x, {**terms, "log_prior": self._log_prior(z, x, log_det)}

    def _log_prior(self, z: Tensor, x: Tensor, log_det: Tensor) -> Tensor:
        density = self.solver.density
        if density is None:
            return self.solver.tempering * (log_normal(z) - log_det)
        given = density.from_unit_range(x.flatten(0, 1))
        return density.log_prob(given).double().unflatten(0, z.shape[:2])
