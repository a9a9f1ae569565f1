"""Noise with a normal distribution, whose level is given in one of three ways."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_number
from flowprior.physics.noise.base import (
    Noise,
    check_density,
    check_real,
    difference,
    half_square,
    mean,
)
from flowprior.physics.noise.draws import Indices, standard_normal

Scale = Literal["data", "255"]


@dataclass(frozen=True)
class Gaussian(Noise):
    """y = A(x) + n, n ~ N(0, σ²); for complex data σ is that of either part, real or imaginary.

    Args:
        sigma: σ ≥ 0; with 0, `add` changes nothing and there is no misfit.
        scale: "data", σ is in the units of the data; "255", σ is on 8-bit pixels and data are in
            [0, 1], so that σ/255 is meant.
    """

    normal = True
    sigma: float
    scale: Scale = "data"

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("sigma", self.sigma, least=0)
        if self.scale not in ("data", "255"):
            raise ValueError(f'scale must be "data" or "255", got {self.scale!r}')

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x) + n."""
        return clean + self.deviation * standard_normal(clean, seed, indices)

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """½ Σ |(predicted − y)/σ|²."""
        return half_square(self.standardised(predicted, y))

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/σ."""
        check_density("sigma", self.sigma)
        return difference(predicted, y) * (1 / self.deviation)

    @property
    def deviation(self) -> float:
        """σ in the units of the data."""
        return self.sigma / 255 if self.scale == "255" else self.sigma


@dataclass(frozen=True)
class Relative(Noise):
    """y = A(x)·(1 + ε), ε ~ N(0, σ²), for real data.

    Entries with y = 0, where A(x) is 0 as well, are left out of the misfit.

    Reference: Li & Denli, Gaussianization layers, section 4.2 (travel times).

    Args:
        sigma: σ ≥ 0; with 0, `add` changes nothing and there is no misfit.
    """

    normal = True
    sigma: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("sigma", self.sigma, least=0)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x)·(1 + ε)."""
        check_real(self, clean, clean)
        return clean * (1 + self.sigma * standard_normal(clean, seed, indices))

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Σ ½((y − p)/(σ p))² + log|p|, p = predicted."""
        square = half_square(self.standardised(predicted, y))
        return square + _non_zero(predicted, y).abs().log().flatten(1).sum(1)

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/(σ·predicted)."""
        check_density("sigma", self.sigma)
        check_real(self, predicted, y)
        error = torch.where(y != 0, difference(predicted, y), 0)
        return error / (self.sigma * _non_zero(predicted, y))


@dataclass(frozen=True)
class SNR(Noise):
    r"""y = A(x) + n, n ~ N(0, σ²), 10 log₁₀(‖A(x)‖²/E‖n‖²) = db for every image.

    Sums run over the m observed entries, and the mean of A(x) is part of the signal. `add` takes
    σ² = ‖A(x)‖² r/m, r = 10^(−db/10), and a ValueError says where ‖A(x)‖ = 0. The misfit
    estimates σ² = ‖y‖² r/((1 + r) m); entries of y that are exactly zero count as not observed.
    For complex data σ is that of either part, real or imaginary, so that σ² is half of this.

    Args:
        db: signal-to-noise ratio in decibels, in [−200, 200].
    """

    normal = True
    db: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_number("db", self.db, least=-200, most=200)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x) + n."""
        noise = standard_normal(clean, seed, indices)
        square = _square(clean)
        # One image at a time: the order of a sum over a batch may depend on the batch.
        rows = zip(square.split(1), seen.split(1), strict=True)
        power = torch.cat([square.new_zeros(0), *(mean(row, mask) for row, mask in rows)])
        sigma = (power * self._ratio()).sqrt()
        _check_signal(sigma, "image", list(map(int, indices)))
        return clean + _per_row(sigma, clean) * noise

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """½ Σ |(predicted − y)/σ|²."""
        return half_square(self.standardised(predicted, y))

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/σ."""
        error, ratio = difference(predicted, y), self._ratio()
        power = mean(_square(y), y != 0)
        sigma = (power * ratio / (1 + ratio)).sqrt()
        _check_signal(sigma, "row", list(range(len(y))))
        return error * _per_row(1 / sigma, error)

    def _ratio(self) -> float:
        return 10 ** (-self.db / 10)


def _square(signal: Tensor) -> Tensor:
    """Of each entry, float64; the mean of those of either part, if they are complex."""
    square = signal.detach().abs().double().square()
    return square / 2 if signal.is_complex() else square


def _non_zero(predicted: Tensor, y: Tensor) -> Tensor:
    """The prediction in float64, but 1 where y is 0, and never 0 where y is not."""
    scale = torch.where(y != 0, predicted.double(), 1)
    return torch.where(scale == 0, torch.finfo(scale.dtype).tiny, scale)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.real.dtype).view(-1, *[1] * (like.ndim - 1))


def _check_signal(sigma: Tensor, kind: str, numbers: list[int]) -> None:
    for number, positive in zip(numbers, (sigma.isfinite() & (sigma > 0)).tolist(), strict=True):
        if not positive:
            raise ValueError(
                f"the SNR of {kind} {number} is undefined: nothing is observed, or what is "
                "observed is zero or not finite"
            )
