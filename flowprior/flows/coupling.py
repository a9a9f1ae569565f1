"""Coupling layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from flowprior.flows.numerics import bounded, sum_spatial

CouplingKind = Literal["additive", "affine"]


@dataclass(frozen=True)
class Coupling:
    """y_a = x_a, y_b = x_b·exp(s(x_a)) + t(x_a), or its inverse, as a layer of a chain.

    The output channels of `net` are t (additive, s = 0) or (s, t), s bounded by ±`log_scale_limit`.
    Under autocast only `net` runs in low precision, not the state and the log-determinant.
    """

    net: nn.Module
    kind: CouplingKind
    log_scale_limit: float
    inverted: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors that receive gradients."""
        return tuple(self.net.parameters())

    def flipped(self) -> "Coupling":
        """The inverse layer."""
        return replace(self, inverted=not self.inverted)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply the layer to x (B, C, H, W), C even."""
        a, b = x.chunk(2, 1)
        log_scale, shift = self._scale_and_shift(a)
        return torch.cat([a, self._move(b, log_scale, shift)], 1), self._log_det(log_scale)

    def pull_back(
        self, y: Tensor, grad: Tensor, grad_log_det: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """See `ChainLayer.pull_back`; the net is evaluated once, for both directions."""
        a, y_b = y.chunk(2, 1)
        grad_a, grad_b = grad.chunk(2, 1)
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            out = self.net(a).to(a.dtype)
        log_scale, shift = self._split(out.detach())
        b = self.flipped()._move(y_b, log_scale, shift)
        if log_scale is None:
            grad_out = grad_b
        else:
            # The inverse y_b = (b − t)·exp(−s) has the signs of all these gradients turned.
            by_log_scale = y_b if self.inverted else y_b - shift
            grad_log_scale = grad_b * by_log_scale + grad_log_det.view(-1, 1, 1, 1)
            slope = 1 - (log_scale / self.log_scale_limit).square()
            scaled = grad_b * torch.exp(-log_scale if self.inverted else log_scale)
            grad_shift = scaled if self.inverted else grad_b
            grad_out = torch.cat([grad_log_scale * slope, grad_shift], 1)
            grad_b = scaled
        grad_out = -grad_out if self.inverted else grad_out
        inputs = [a, *(t for t, want in zip(self.tensors, wanted, strict=True) if want)]
        from_net, *found = torch.autograd.grad(out, inputs, grad_out)
        grads = iter(found)
        return (
            torch.cat([a.detach(), b], 1),
            torch.cat([grad_a + from_net, grad_b], 1),
            [next(grads) if want else None for want in wanted],
        )

    def _scale_and_shift(self, a: Tensor) -> tuple[Tensor | None, Tensor]:
        return self._split(self.net(a).to(a.dtype))

    def _split(self, out: Tensor) -> tuple[Tensor | None, Tensor]:
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
