"""Invertible 1×1 convolutions with ActNorm folded in."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowprior.flows.act_norm import LOG_SCALE_LIMIT, MIN_STD
from flowprior.flows.frozen import FrozenCache, are_frozen
from flowprior.flows.numerics import bounded, channel_moments, unbounded


class FoldedWeights(NamedTuple):
    """The convolutions of a stack and their inverses: y = weight·x + offset, and back.

    weight, inverse: (steps, C, C); offset, inverse_offset: (steps, C); log_det: the sum over steps
    and channels of log|scale|, one number, per pixel.
    """

    weight: Tensor
    offset: Tensor
    inverse: Tensor
    inverse_offset: Tensor
    log_det: Tensor


@dataclass(frozen=True)
class PixelAffine:
    """One y = weight·x + offset at every pixel, as a layer of a memory-flat chain."""

    weight: Tensor
    offset: Tensor
    inverse: Tensor
    inverse_offset: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Tensors that receive gradients."""
        return self.weight, self.offset

    def flipped(self) -> "PixelAffine":
        """The inverse layer."""
        return PixelAffine(self.inverse, self.inverse_offset, self.weight, self.offset)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Apply the layer. Its log-determinant does not depend on x and is added elsewhere."""
        with torch.autocast(x.device.type, enabled=False):
            return pixel_affine(x, self.weight, self.offset), None

    def pull_back(
        self, y: Tensor, grad: Tensor, grad_log_det: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """See `ChainLayer.pull_back`."""
        x = self.flipped().forward(y)[0]
        with torch.autocast(y.device.type, enabled=False):
            grad_x = F.conv2d(grad, self.weight.t()[:, :, None, None])
            grad_weight = torch.einsum("bdhw,bchw->dc", grad, x) if wanted[0] else None
        grad_offset = grad.sum((0, 2, 3)) if wanted[1] else None
        return x, grad_x, [grad_weight, grad_offset]


def pixel_affine(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """Weight (D, C) times the channels of x (B, C, H, W), plus offset (D,): (B, D, H, W)."""
    return F.conv2d(x, weight[:, :, None, None], offset)


class InvertibleConvolutions(nn.Module):
    """A stack of `steps` invertible 1×1 convolutions, each with its ActNorm (Kingma & Dhariwal).

    Step k computes W_k·diag(s_k)·(x + b_k), W = P·L·(U + diag(d)), with log|s| and log|d| bounded
    and P and the signs of d fixed. ActNorm and convolution are one matrix per step; matrices are
    composed, inverted and their determinants taken in float64, for the whole stack at once.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(steps, channels, channels).double())[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal(dim1=1, dim2=2)
        log_diagonal = unbounded(diagonal.abs().log(), LOG_SCALE_LIMIT)
        dtype = torch.get_default_dtype()
        self.log_scale = nn.Parameter(torch.zeros(steps, channels))
        self.bias = nn.Parameter(torch.zeros(steps, channels))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.log_diagonal = nn.Parameter(log_diagonal.to(dtype))
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self._cache = FrozenCache[FoldedWeights]()

    def fold(self, inverted: bool = False, recompute: bool = False) -> FoldedWeights:
        """All matrices of the stack, cached while the weights are frozen.

        Only `weight` and `offset` have gradients, or their inverses if `inverted`. With `recompute`
        only the parameters are kept for the gradients: the float64 factors of a deep stack of many
        channels would need more memory than a memory-flat chain.
        """
        if are_frozen(self.parameters()):
            return self._cache.get([*self.parameters(), *self.buffers()], self._fold)
        if recompute and torch.is_grad_enabled():
            return checkpoint(self._fold, inverted, use_reentrant=False, preserve_rng_state=False)
        return self._fold(inverted)

    def _fold(self, inverted: bool = False) -> FoldedWeights:
        log_scale = bounded(self.log_scale.double(), LOG_SCALE_LIMIT)
        log_diagonal = bounded(self.log_diagonal.double(), LOG_SCALE_LIMIT)
        unit = torch.eye(log_scale.shape[1], dtype=torch.float64, device=log_scale.device)
        lower = self.lower.double().tril(-1) + unit
        upper = self.upper.double().triu(1) + torch.diag_embed(self.sign * log_diagonal.exp())
        upper = upper * log_scale.exp()[:, None, :]
        permutation, bias = self.permutation.double(), self.bias.double()
        with torch.no_grad() if inverted else nullcontext():
            weight = permutation @ lower @ upper
            offset = (weight @ bias[..., None])[..., 0]
        with nullcontext() if inverted else torch.no_grad():
            rows = permutation.mT
            rows = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            inverse = torch.linalg.solve_triangular(upper, rows, upper=True)
        exact = FoldedWeights(weight, offset, inverse, -bias, log_scale.sum() + log_diagonal.sum())
        return FoldedWeights(*(tensor.to(self.bias.dtype) for tensor in exact))

    def layers(self, folded: FoldedWeights) -> list[PixelAffine]:
        """The stack's steps as layers of a chain, in encoding order."""
        return [PixelAffine(*step) for step in zip(*(t.unbind() for t in folded[:4]), strict=True)]

    @torch.no_grad()
    def initialize(self, step: int, x: Tensor) -> PixelAffine:
        """Set step's ActNorm so that its output has zero mean and unit variance on the batch x.

        x is (B, C, H, W); returns the step as it now is. Moments are taken over all processes.
        """
        mean, std = channel_moments(x)
        self.bias[step] = -mean.to(self.bias.dtype)
        log_scale = -std.clamp_min(MIN_STD).log()
        self.log_scale[step] = unbounded(log_scale, LOG_SCALE_LIMIT).to(self.bias.dtype)
        return self.layers(self._fold())[step]
