"""Noise of counts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_positive
from flowprior.physics.noise.base import Noise, check_real, difference
from flowprior.physics.noise.draws import Indices, draw

# Expected count below which the likelihood is continued by a parabola.
LEAST_COUNT = 1e-3


@dataclass(frozen=True)
class Poisson(Noise):
    r"""y = N/gain, N ~ Poisson(gain·A(x)), A(x) ≥ 0.

    `add` takes negative entries of the size of rounding errors for 0; others are a ValueError, as
    are negative entries of y.

    Args:
        gain: counts per unit of the data, > 0.
    """

    gain: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("gain", self.gain)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """N/gain."""
        used = torch.where(seen, clean, 0)
        _check_counts("clean", used, tolerance=1e-5)
        return draw(used.clamp(min=0), seed, indices, self._counts) / self.gain

    def _counts(self, rng: np.random.Generator, row: Tensor) -> np.ndarray:
        return rng.poisson(self.gain * row.double().cpu().numpy()).astype(np.float64)

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Σ gain·(p − y log p), p = predicted, less its minimum over p.

        Below f = 0.001/gain, where the logarithm has no bound, p − y log p goes on as the parabola
        with the same value and slope at f, and the curvature (y + f)/f². Its minimum for y = 0
        is at p = 0.
        """
        p, y = self._counted(predicted, y)
        return self.gain * (self._cost(p, y) - self._cost(y, y)).flatten(1).sum(1)

    def _cost(self, p: Tensor, y: Tensor) -> Tensor:
        floor = LEAST_COUNT / self.gain
        above, below = p.clamp(min=floor), -torch.relu(floor - p)
        parabola = (1 - y / floor) * below + 0.5 * (y + floor) * (below / floor).square()
        return above - torch.special.xlogy(y, above) + parabola

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/√(p/gain), p = predicted, of at least 0.001/gain."""
        p, y = self._counted(predicted, y)
        return (p - y) * (self.gain / p.clamp(min=LEAST_COUNT / self.gain)).sqrt()

    def _counted(self, predicted: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        check_real(self, predicted, y)
        difference(predicted, y)
        _check_counts("y", y)
        return predicted.double(), y.double()


def _check_counts(name: str, values: Tensor, tolerance: float = 0.0) -> None:
    """Raise a ValueError for entries below −tolerance times the largest of their image."""
    least = -tolerance * values.abs().flatten(1).amax(1) if values.numel() else values.new_zeros(0)
    valid = values.isfinite().flatten(1) & (values.flatten(1) >= least.unsqueeze(1))
    if not valid.all():
        raise ValueError(
            f"{name} of Poisson noise must be finite and at least 0, got "
            f"{values.flatten(1)[~valid][0].item():g}"
        )
