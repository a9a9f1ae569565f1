"""ActNorm: a scale and an offset for each channel, set by the first batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.flows.numerics import bounded, channel_moments, unbounded

LOG_SCALE_LIMIT = 12.0
MIN_STD = 1e-3
"""A channel that is constant except for its dequantisation noise, of 8 bits, stays finite."""


@dataclass(frozen=True)
class ChannelAffine:
    """One y = exp(log_scale)·(x + bias) for each channel, as a layer of a memory-flat chain."""

    log_scale: Tensor
    bias: Tensor
    inverted: bool = False

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Tensors that receive gradients."""
        return self.log_scale, self.bias

    def flipped(self) -> "ChannelAffine":
        """The inverse layer."""
        return ChannelAffine(self.log_scale, self.bias, not self.inverted)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layer to x (B, C, H, W)."""
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        if self.inverted:
            return x * _wide(torch.exp(-self.log_scale)) - _wide(self.bias), -log_det.expand(len(x))
        return (x + _wide(self.bias)) * _wide(self.log_scale.exp()), log_det.expand(len(x))

    def pull_back(
        self, y: Tensor, grad: Tensor, grad_log_det: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """See `ChainLayer.pull_back`."""
        x, _ = self.flipped().forward(y)
        pixels = y.shape[2] * y.shape[3]
        sign = -1 if self.inverted else 1
        grad_x = grad * _wide((sign * self.log_scale).exp())
        moved = y + _wide(self.bias) if self.inverted else y
        by_log_scale = (grad * moved).sum((0, 2, 3)) + grad_log_det.sum() * pixels
        by_bias = -grad.sum((0, 2, 3)) if self.inverted else grad_x.sum((0, 2, 3))
        grads = [sign * by_log_scale, by_bias]
        return x, grad_x, [g if want else None for g, want in zip(grads, wanted, strict=True)]


class ActNorm(nn.Module):
    """A per-channel affine map whose output has mean 0 and variance 1 on the first batch.

    y = exp(s)·(x + b), s bounded (Kingma & Dhariwal, "Glow", 2018, section 3.1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def layer(self) -> ChannelAffine:
        """The map as a layer of a chain."""
        return ChannelAffine(bounded(self.log_scale, LOG_SCALE_LIMIT), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map to x (B, C, H, W)."""
        return self.layer().forward(x)[0]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set scale and offset from the moments of x (B, C, H, W), over all processes."""
        mean, std = channel_moments(x)
        self.bias.copy_(-mean)
        self.log_scale.copy_(unbounded(-std.clamp_min(MIN_STD).log(), LOG_SCALE_LIMIT))


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]
