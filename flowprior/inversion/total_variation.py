"""Total variation: images of constant pieces."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.inversion.checks import check_noise, check_positive
from flowprior.inversion.descent import LBFGSRun, Values
from flowprior.inversion.images import first_images
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver
from flowprior.physics.checks import check_number
from flowprior.physics.noise import Noise


@dataclass(frozen=True)
class TotalVariation(Solver):
    r"""Minimise misfit(A(x), y) + λ TV(x) over x in (0, 1), by L-BFGS in v = log(x/(1 − x)).

    .. math:: \mathrm{TV}(x) = \sum_{c,i,j} \sqrt{|\nabla x_{cij}|^2 + \varepsilon^2} - \varepsilon

    with forward differences and no variation across the border: isotropic, rounded off at ε. It
    starts from the given images, clamped to [0.01, 0.99] since v is infinite at 0 and 1, or from
    grey.

    Reference: Rudin, Osher & Fatemi, Nonlinear total variation based noise removal (1992).

    Args:
        weight: λ ≥ 0, in nats per unit of total variation; choose it on validation images.
        misfit: noise model to fit the data by; that of the data by default.
        smoothing: ε > 0.

    Raises:
        ValueError: names the option.
    """

    weight: float
    misfit: Noise | None = None
    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0)
        check_positive("smoothing", self.smoothing)
        check_noise("misfit", self.misfit)

    def begin(self, problem: Problem) -> LBFGSRun:
        """Start from the given images, or from grey ones."""
        v = nn.Parameter(first_images(problem).clamp(0.01, 0.99).logit().flatten(1))
        return LBFGSRun(VariationTerms(self, problem), v)


class VariationTerms:
    """The objective of `TotalVariation` for a batch, as a function of v; the log prior is −λ TV."""

    def __init__(self, solver: TotalVariation, problem: Problem) -> None:
        self.problem, self.solver = problem, solver
        self.noise = problem.misfit(solver.misfit, type(solver).__name__)

    def latents(self, v: Tensor) -> None:
        """None: no prior is involved."""

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images and loss, misfit and log_prior of unknowns v (k, n) of the images `rows`."""
        x = v.sigmoid().unflatten(1, self.problem.image_shape)
        misfit = self.noise.misfit(self.problem.forward(x, rows), self.problem.y[rows])
        log_prior = -self.solver.weight * total_variation(x, self.solver.smoothing)
        return x, {"loss": misfit - log_prior, "misfit": misfit, "log_prior": log_prior}


def total_variation(x: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Smoothed isotropic total variation of images (B, C, H, W), (B,), float64."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    length = (down.square() + right.square() + smoothing**2).sqrt() - smoothing
    return length.flatten(1).sum(1, dtype=torch.float64)
