"""Normal noise with outliers."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import softplus

from flowprior.argument_types import check_fields
from flowprior.checks import check_number
from flowprior.physics.noise.base import Noise, check_density, check_real, difference
from flowprior.physics.noise.draws import Indices, draw


@dataclass(frozen=True)
class Contaminated(Noise):
    """y = A(x) + n, n ~ (1 − ε) N(0, σ²) + ε N(0, (kσ)²), for real data.

    Its misfit forgives a few large errors. Tukey's contaminated normal distribution.

    Args:
        sigma: σ ≥ 0; with 0, `add` changes nothing and there is no misfit.
        share: ε in [0, 0.5], the expected share of outliers.
        factor: k in [1e-3, 1e6].
    """

    sigma: float
    share: float = 0.05
    factor: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("sigma", self.sigma, least=0)
        check_number("share", self.share, least=0, most=0.5)
        check_number("factor", self.factor, least=1e-3, most=1e6)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x) + n."""
        return clean + self.sigma * draw(clean, seed, indices, self._unit)

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """−Σ log[(exp(−t²/2) + r exp(−t²/(2k²)))/(1 + r)].

        t = (predicted − y)/σ and r = ε/((1 − ε)k).
        """
        check_density("sigma", self.sigma)
        check_real(self, predicted, y)
        half = 0.5 * (difference(predicted, y) * (1 / self.sigma)).double().square()
        if self.share == 0:
            return half.flatten(1).sum(1)
        ratio = self.share / (self.factor * (1 - self.share))
        # The logarithm of a sum of two exponentials, the first taken out.
        outlier = math.log(ratio) + half * (1 - self.factor**-2)
        terms = half - softplus(outlier, threshold=700) + math.log1p(ratio)
        return terms.flatten(1).sum(1)

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/standard deviation of n."""
        check_density("sigma", self.sigma)
        check_real(self, predicted, y)
        return difference(predicted, y) * (1 / self.deviation)

    @property
    def deviation(self) -> float:
        """Standard deviation of n."""
        return self.sigma * math.sqrt(1 + self.share * (self.factor**2 - 1))

    def _unit(self, rng: np.random.Generator, row: Tensor) -> np.ndarray:
        shape = tuple(row.shape)
        normal, outlier = rng.standard_normal(shape), rng.random(shape) < self.share
        return np.where(outlier, self.factor * normal, normal)
