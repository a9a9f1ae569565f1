"""Learned diagonal Gaussians, which standardise the variables that leave a multi-scale flow."""

import torch
from torch import Tensor, nn

from flowprior.flows.numerics import bounded, sum_spatial

LOG_STD_LIMIT = 6.0


class SplitGaussian(nn.Module):
    """z ~ N(μ, diag σ²) written as ε = (z − μ)/σ ~ N(0, I); (μ, log σ) from `statistics`."""

    def standardize(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (ε, log|det dε/dz|) for z (B, C, H, W)."""
        mean, log_std = self.statistics(z, context)
        return (z - mean) * torch.exp(-log_std), -sum_spatial(log_std.expand_as(z))

    def restore(self, epsilon: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (z, log|det dz/dε|), the inverse of `standardize`."""
        mean, log_std = self.statistics(epsilon, context)
        return mean + epsilon * torch.exp(log_std), sum_spatial(log_std.expand_as(epsilon))

    def statistics(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, broadcastable to z."""
        raise NotImplementedError


class ConditionalPrior(SplitGaussian):
    """Gaussian of the half that leaves, given the half that stays (both (B, C, H, W))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def statistics(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SplitGaussian.statistics`."""
        mean, log_std = self.convolution(context).to(z.dtype).chunk(2, 1)
        return mean, bounded(log_std, LOG_STD_LIMIT)


class ChannelPrior(SplitGaussian):
    """Gaussian of the last level: one mean and one standard deviation per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_std = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def statistics(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `SplitGaussian.statistics`."""
        return self.mean, bounded(self.log_std, LOG_STD_LIMIT)


class StandardGaussian(SplitGaussian):
    """N(0, I): what leaves is a latent as it is."""

    def statistics(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """0 and log 1."""
        return z.new_zeros(()), z.new_zeros(())
