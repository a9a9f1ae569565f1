"""What an inversion minimises."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowprior.flows import Flow, standard_normal_log_prob

Misfit = Literal["squared", "absolute"]
Prior = Literal["map", "latent_norm", "none"]
Unit = Literal["nats", "bits_per_dim"]


class Terms(NamedTuple):
    """Image x (B, C, H, W) in [0, 1] up to overshoot, and its terms, (B,) each.

    misfit is in squared (or absolute) units of the data, float64, log_prior in nats; loss is misfit
    less β times the prior in β's unit, float64.
    """

    x: Tensor
    loss: Tensor
    misfit: Tensor
    log_prior: Tensor


@dataclass(frozen=True)
class Objective:
    r"""Per image, ½‖s (A(x) − y)‖² − β·prior, or with Σ|s (A(x) − y)|; x = f(z).

    The prior is log p_X(x) = log N(z; 0, I) − log|det ∂f/∂z| ("map"), log N(z; 0, I) alone
    ("latent_norm") or nothing ("none"); z is the standardised latent. Images are not clamped, which
    would take the gradient away where they saturate.

    Reference: Li & Denli, Gaussianization layers, eq. 1–3, with β's unit stated: the paper's
    deblurring has s = 255 and β = 1000 per bit/dimension.

    Args:
        misfit: "squared" or "absolute".
        prior: "map", "latent_norm" or "none".
        beta: β ≥ 0.
        beta_unit: β counts per nat of the whole image, or per bit per dimension of it.
        data_scale: s > 0, for noise levels and weights on another scale than the data's.
    """

    misfit: Misfit = "squared"
    prior: Prior = "map"
    beta: float = 1.0
    beta_unit: Unit = "nats"
    data_scale: float = 1.0

    def __post_init__(self) -> None:
        choices = {
            "misfit": ("squared", "absolute"),
            "prior": ("map", "latent_norm", "none"),
            "beta_unit": ("nats", "bits_per_dim"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                expected = ", ".join(map(repr, known))
                raise ValueError(
                    f"objective.{name} must be one of {expected}, got {getattr(self, name)!r}"
                )
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"objective.beta must be finite and at least 0, got {self.beta}")
        if not (math.isfinite(self.data_scale) and self.data_scale > 0):
            raise ValueError(
                f"objective.data_scale must be finite and positive, got {self.data_scale}"
            )

    def weight(self, dimensions: int) -> float:
        """β per nat of an image of so many dimensions."""
        unit = dimensions * math.log(2) if self.beta_unit == "bits_per_dim" else 1.0
        return self.beta / unit

    def data_misfit(self, residual: Tensor) -> Tensor:
        """The misfit of residuals A(x) − y (B, ...), which may be complex, (B,)."""
        size = (residual * self.data_scale).abs().flatten(1)
        # In double precision, so that a line search sees small decreases of a large sum.
        if self.misfit == "absolute":
            return size.sum(1, dtype=torch.float64)
        return 0.5 * size.square().sum(1, dtype=torch.float64)

    def log_prior(self, z: Tensor, log_det: Tensor) -> Tensor:
        """The prior at latents z with log|det ∂f/∂z| = log_det, in nats, (B,)."""
        if self.prior == "none":
            return torch.zeros_like(log_det)
        log_prob = standard_normal_log_prob(z)
        return log_prob - log_det if self.prior == "map" else log_prob

    def terms(self, flow: Flow, z: Tensor, forward: "Forward", y: Tensor) -> Terms:
        """Evaluate at latents z (B, ...) for data y (B, ...)."""
        decoded, log_det = flow.decode(z)
        x = flow.to_unit_range(decoded)
        misfit = self.data_misfit(forward(x) - y)
        log_prior = self.log_prior(z, log_det)
        loss = misfit - self.weight(z[0].numel()) * log_prior
        return Terms(x, loss, misfit, log_prior)


class Forward:
    """A forward operator without its noise, of anything that has A or can be called.

    Attributes:
        images: B if it has parameters, masks for example, of its own for each of B images; or None.
    """

    images: int | None = None

    def __init__(self, physics: object) -> None:
        self._apply = getattr(physics, "A", physics)
        self.name = type(physics).__name__
        if not callable(self._apply):
            raise ValueError(f"physics must be a deepinv Physics or a function, got {self.name}")

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Noiseless data of images x (B, C, H, W) in [0, 1], of all images or of `rows`."""
        if self.images is None or rows is None:
            return self._apply(x)
        every = x.new_zeros(self.images, *x.shape[1:]).index_copy(0, rows, x)
        return self._apply(every)[rows]
