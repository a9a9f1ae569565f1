"""Coupling layers."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from flowprior.flows.numerics import bounded, sum_spatial

CouplingKind = Literal["additive", "affine"]


@dataclass(frozen=True)
class Coupling:
    """y_a = x_a, y_b = x_b·exp(s(x_a)) + t(x_a), or its inverse, as a layer of a chain.

    `net` gives t (additive, s = 0) or (s, t) in its channels; s is bounded by ±`log_scale_limit`.
    The flow state and the log-determinant keep their precision under autocast; only `net` changes.
    """

    net: nn.Module
    kind: CouplingKind
    inverted: bool = False

    log_scale_limit = 2.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that receive gradients."""
        return tuple(self.net.parameters())

    def flipped(self) -> "Coupling":
        """The inverse layer."""
        return replace(self, inverted=not self.inverted)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply the layer to x (B, C, H, W), C even."""
        a, b = x.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(a)
        return torch.cat([a, self._move(b, log_scale, shift)], 1), self._log_det(log_scale)

    def rebuild(self, y: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor | None]:
        """See `ChainLayer.rebuild`; the net is evaluated once, for both directions."""
        a, b = (half.detach() for half in y.chunk(2, 1))
        a.requires_grad_()
        log_scale, shift = self._scale_and_shift(a)
        with torch.no_grad():
            b = self.flipped()._move(b, log_scale, shift)
        b.requires_grad_()
        y = torch.cat([a, self._move(b, log_scale, shift)], 1)
        return (a, b), y, self._log_det(log_scale)

    def _scale_and_shift(self, a: Tensor) -> tuple[Tensor | None, Tensor]:
        out = self.net(a).to(a.dtype)
        if self.kind == "additive":
            return None, out
        raw, shift = out.chunk(2, 1)
        return bounded(raw, self.log_scale_limit), shift

    def _move(self, b: Tensor, log_scale: Tensor | None, shift: Tensor) -> Tensor:
        if log_scale is None:
            return b - shift if self.inverted else b + shift
        if self.inverted:
            return (b - shift) * torch.exp(-log_scale)
        return b * torch.exp(log_scale) + shift

    def _log_det(self, log_scale: Tensor | None) -> Tensor | None:
        if log_scale is None:
            return None
        return -sum_spatial(log_scale) if self.inverted else sum_spatial(log_scale)
