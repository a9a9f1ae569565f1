"""The objective of solvers over latents."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from flowprior.gaussianization import Reparameterization
from flowprior.inversion.descent import Values
from flowprior.inversion.problem import Problem
from flowprior.latent import standard_normal_log_prob
from flowprior.priors import Prior

if TYPE_CHECKING:
    from flowprior.inversion.map import MAP

Layers = Reparameterization | dict[str, Reparameterization]


class LatentTerms:
    """The objective of `MAP` for a batch, as a function of v.

    Attributes:
        weight: β per nat, one number, or (B,) float64 for one per image.
        tests_prior: whether the minimum is the most probable latent by Bayes' rule.
    """

    replayable = True

    def __init__(self, solver: "MAP", problem: Problem) -> None:
        self.problem = problem
        self.prior = problem.prior
        self.penalty = solver.penalty
        self.noise = problem.misfit(solver.misfit, type(solver).__name__)
        self.layers = layers_by_part(solver.reparameterization, problem.prior)
        self.weight: float | Tensor = solver.weight(problem.image_shape)
        explicit = solver.misfit is not None and solver.misfit != problem.noise
        bayes = solver.penalty == "latent_norm" and self.weight == 1 and not self.layers
        self.tests_prior = bayes and not explicit

    def latents(self, v: Tensor) -> Tensor:
        """Latents z = h(v) as the prior takes them, (k, *latent.shape)."""
        latent = self.prior.latent
        return latent.shaped(latent.map(self.layers, v))

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images and loss, misfit and log_prior of latents v (k, n) of the images `rows`."""
        problem = self.problem
        z = self.latents(v)
        x, log_det = self._decoded(z, rows)
        x = self.prior.to_unit_range(x)
        misfit = self.noise.misfit(problem.forward(x, rows), problem.y[rows])
        if self.penalty == "none":
            return x, {"loss": misfit, "misfit": misfit}
        log_prior = standard_normal_log_prob(z)
        log_prior = log_prior if log_det is None else log_prior - log_det
        weight = self.weight if isinstance(self.weight, float) else self.weight[rows]
        loss = misfit - weight * log_prior
        return x, {"loss": loss, "misfit": misfit, "log_prior": log_prior.double()}

    def _decoded(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        condition = self.problem.condition
        extra = () if condition is None else (condition[rows],)
        if self.penalty == "log_density":
            return self.prior.decode(z, *extra)
        return self.prior.generate(z, *extra), None


def check_layers(layers: object) -> None:
    """Raise ValueError unless given layers, layers by name of a part, or None."""
    given = layers.values() if isinstance(layers, Mapping) else [layers]
    for layer in given:
        if layer is not None and not isinstance(layer, Reparameterization):
            raise ValueError(
                "reparameterization must be a flowprior.gaussianization.Reparameterization, such "
                f"as Gaussianization.robust(), got {layer!r}"
            )


def layers_by_part(layers: Layers | None, prior: Prior) -> dict[str, Reparameterization]:
    """Layers by name of the latent's part; raises ValueError for an unknown part."""
    if layers is None:
        return {}
    names = list(prior.latent.parts)
    if not isinstance(layers, Mapping):
        if len(names) > 1:
            raise ValueError(
                "reparameterization: the latent has several parts, give layers by name: "
                f"{', '.join(names)}"
            )
        return {names[0]: layers}
    unknown = sorted(layers.keys() - set(names))
    if unknown:
        raise ValueError(
            f"reparameterization: no part {', '.join(unknown)}; the prior has {', '.join(names)}"
        )
    return dict(layers)
