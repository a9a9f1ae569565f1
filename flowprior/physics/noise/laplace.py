"""Noise with heavier tails than a normal distribution."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_number
from flowprior.physics.noise.base import Noise, check_density, difference
from flowprior.physics.noise.draws import Indices, draw


@dataclass(frozen=True)
class Laplace(Noise):
    """y = A(x) + n, n of density ∝ exp(−|n|/scale), for real data.

    The standard deviation of n is √2·scale.

    Args:
        scale: ≥ 0, in the units of the data; with 0, `add` changes nothing and there is no misfit.
    """

    scale: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("scale", self.scale, least=0)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x) + n."""
        noise = draw(clean, seed, indices, lambda rng, row: rng.laplace(size=tuple(row.shape)))
        return clean + self.scale * noise

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Σ |predicted − y|/scale."""
        return self._scaled(predicted, y).abs().flatten(1).sum(1, dtype=torch.float64)

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/(√2·scale)."""
        return self._scaled(predicted, y) / sqrt(2)

    def _scaled(self, predicted: Tensor, y: Tensor) -> Tensor:
        check_density("scale", self.scale)
        return difference(predicted, y) * (1 / self.scale)
