"""What every noise model offers, and the arithmetic that they share.

Signals are (B, ...), one image per row; `indices` are the images' positions in the data set.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from flowprior.physics.noise.draws import Indices


class Noise(ABC):
    """The distribution of data y given the noiseless data A(x).

    Attributes:
        normal: whether `standardised` of the true image is N(0, 1), so that its squares are χ².
    """

    normal: ClassVar[bool] = False

    def add(
        self, clean: Tensor, *, seed: int, indices: Indices, observed: Tensor | None = None
    ) -> Tensor:
        """Noisy data; the noise of an image depends on (seed, index) and its own data only.

        Args:
            clean: noiseless data (B, ...), floating point; real, unless the model says more.
            seed: of the run, ≥ 0.
            indices: of the images, B integers ≥ 0.
            observed: mask that broadcasts to the shape of `clean`, non-zero where data are
                measured; everywhere if None. Other entries are returned unchanged.

        Raises:
            ValueError: an argument is not as described.
        """
        seen = _mask(observed, clean)
        return torch.where(seen, self.sample(clean, seed, indices, seen), clean)

    @abstractmethod
    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """Noisy data; `seen`, bool of the shape of `clean`, is where they will be used."""

    @abstractmethod
    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood of y given A(x) = predicted, per image.

        Terms that do not depend on `predicted` are left out.

        Args:
            predicted: A(x), (B, ...).
            y: data of the same shape.

        Returns:
            (B,), float64.

        Raises:
            ValueError: shapes differ, or the noise has no density, as for σ = 0.
        """

    @abstractmethod
    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """(predicted − y)/standard deviation of y, (B, ...)."""

    def residual(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Root mean square of `standardised` over the observed entries, per image.

        About 1 where the data are fitted to the noise. Entries that are exactly zero both in y
        and in `predicted` count as not observed. Arguments, result and errors as for `misfit`.
        """
        standardised = self.standardised(predicted, y)
        square = standardised.abs().square().double()
        if standardised.is_complex():  # σ is that of the real part and of the imaginary part
            square = square / 2
        return mean(square, (predicted != 0) | (y != 0)).sqrt()


def difference(predicted: Tensor, y: Tensor) -> Tensor:
    """Predicted − y; a ValueError unless both have one shape (B, ...)."""
    if predicted.shape != y.shape or y.ndim < 2:
        raise ValueError(
            f"predicted and y must have one shape (B, ...), got {tuple(predicted.shape)} and "
            f"{tuple(y.shape)}"
        )
    return predicted - y


def half_square(residual: Tensor) -> Tensor:
    """½ Σ |residual|² of each row, (B,), float64."""
    # Summed in double precision, so that a line search sees small decreases of a large sum.
    return 0.5 * residual.abs().flatten(1).square().sum(1, dtype=torch.float64)


def mean(values: Tensor, seen: Tensor) -> Tensor:
    """Mean of each row's entries that are seen, (B,); 0 where there are none."""
    total = torch.where(seen, values, 0).flatten(1).sum(1)
    return total / seen.flatten(1).sum(1).clamp(min=1)


def check_density(name: str, value: float) -> None:
    """Raise a ValueError if the noise level is 0."""
    if value == 0:
        raise ValueError(f"{name} is 0: data without noise have no misfit, give a positive {name}")


def check_real(noise: Noise, predicted: Tensor, y: Tensor) -> None:
    """Raise a ValueError if data are complex."""
    if predicted.is_complex() or y.is_complex():
        raise ValueError(f"{type(noise).__name__} noise is for real data, got complex ones")


def _mask(observed: Tensor | None, clean: Tensor) -> Tensor:
    if observed is None:
        return torch.ones_like(clean, dtype=torch.bool)
    try:
        return (observed.to(clean.device) != 0).expand(clean.shape)
    except RuntimeError as error:
        raise ValueError(
            f"observed must broadcast to {tuple(clean.shape)}, got {tuple(observed.shape)}"
        ) from error
