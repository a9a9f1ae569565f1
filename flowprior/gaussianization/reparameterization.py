"""How an inversion's free variable v becomes a latent z."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Reparameterization(nn.Module, ABC):
    """A differentiable map from v to z of the same shape; rows are independent of each other."""

    @abstractmethod
    def forward(self, v: Tensor) -> Tensor:
        """Map v (B, ...) to z (B, ...)."""


class Identity(Reparameterization):
    """The latent itself: z = v."""

    def forward(self, v: Tensor) -> Tensor:
        """Return v."""
        return v
