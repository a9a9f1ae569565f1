"""Measurements that have lost their phase."""

from typing import Any

from deepinv.physics import Physics
from torch import Tensor

from flowprior.physics.linear import GaussianMeasurements


class Intensities(Physics):
    """y_i = |⟨a_i, x⟩|² of real images: (B, C, H, W) → (B, m). x and −x have the same y.

    deepinv's `RandomPhaseRetrieval` takes complex images only, and cannot change its precision.

    Args:
        real: ⟨Re a_i, x⟩, (B, m).
        imaginary: ⟨Im a_i, x⟩, (B, m).
    """

    def __init__(self, real: GaussianMeasurements, imaginary: GaussianMeasurements) -> None:
        super().__init__()
        self.real, self.imaginary = real, imaginary

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The intensities (B, m) of images (B, C, H, W)."""
        return self.real.A(x).square() + self.imaginary.A(x).square()
