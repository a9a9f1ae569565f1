"""Total variation and a box: the baseline that needs no flow."""

import torch
from torch import Tensor

from flowprior.inversion.invert import Inversion, OnIteration, minimise
from flowprior.inversion.objective import Forward, Objective, Terms
from flowprior.inversion.problem import check_observations


class TotalVariationProblem:
    r"""½‖s (A(x) − y)‖² + λ TV(x) with x in (0, 1), as a function of v = log(x/(1 − x)).

    .. math:: \mathrm{TV}(x) = \sum_{c,i,j} \sqrt{|\nabla x_{cij}|^2 + \varepsilon^2} - \varepsilon

    with forward differences and no variation across the border: isotropic, rounded off at ε.

    Reference: Rudin, Osher & Fatemi, Nonlinear total variation based noise removal (1992).

    Args:
        physics: operator A on images (B, C, H, W) in [0, 1].
        y: data (B, ...), finite.
        like: one image, (C, H, W), for shape, type and device.
        weight: λ ≥ 0, in the unit of the misfit.
        data_scale: s > 0.
        smoothing: ε > 0.

    Raises:
        ValueError: physics and y do not fit, or an option is out of its range.
    """

    def __init__(
        self,
        physics: object,
        y: Tensor,
        like: Tensor,
        weight: float,
        data_scale: float = 1.0,
        smoothing: float = 1e-3,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and at least 0, got {weight}")
        if not 0 < smoothing < float("inf"):
            raise ValueError(f"smoothing must be finite and positive, got {smoothing}")
        self.forward = Forward(physics)
        self.y = y
        self.weight = weight
        self.smoothing = smoothing
        self.objective = Objective(prior="none", data_scale=data_scale)
        check_observations(self.forward, y, like)

    def terms(self, v: Tensor, rows: Tensor | None = None) -> Terms:
        """Terms of the objective; the log prior is −TV."""
        y = self.y if rows is None else self.y[rows]
        x = v.sigmoid()
        misfit = self.objective.data_misfit(self.forward(x, rows) - y)
        variation = total_variation(x, self.smoothing)
        return Terms(x, misfit + self.weight * variation, misfit, -variation)

    def latents(self, v: Tensor) -> None:
        """None: no flow is involved."""


def invert_with_total_variation(
    physics: object,
    y: Tensor,
    start: Tensor,
    *,
    weight: float,
    data_scale: float = 1.0,
    iterations: int = 100,
    on_iteration: OnIteration | None = None,
) -> Inversion:
    """Minimise `TotalVariationProblem` by L-BFGS from images `start` (B, C, H, W), each by itself.

    Images are clamped to [0.01, 0.99] to start with, for at 0 and 1 v is infinite.
    """
    if start.ndim != 4 or len(start) != len(y) or not start.isfinite().all():
        raise ValueError(
            f"start must be finite images ({len(y)}, C, H, W), got {tuple(start.shape)}"
        )
    problem = TotalVariationProblem(physics, y, start[0], weight, data_scale)
    v = start.clamp(0.01, 0.99).logit()
    return minimise(problem, v, iterations=iterations, on_iteration=on_iteration)


def total_variation(x: Tensor, smoothing: float = 1e-3) -> Tensor:
    """Smoothed isotropic total variation of images (B, C, H, W), (B,), float64."""
    down = torch.nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=3), (0, 1))
    length = (down.square() + right.square() + smoothing**2).sqrt() - smoothing
    return length.flatten(1).sum(1, dtype=torch.float64)
