"""Coupling layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.flows.numerics import bounded, sum_spatial

CouplingKind = Literal["additive", "affine"]


@dataclass(frozen=True)
class Coupling:
    """y_a = x_a, y_b = x_b·exp(s(x_a)) + t(x_a), or its inverse, as a layer of a chain.

    The output channels of `net` are u (additive, s = 0) or (r, u). The shift t is
    `shift_limit`·tanh(u / `shift_limit`), or u where there is no limit. The log-scale s of an
    affine coupling is `log_scale_limit`·tanh(r / `log_scale_limit`), or log sigmoid(r + 2) where
    there is no limit. a is the first half of the channels, or the second where `swapped`. Where
    there is a `condition` (B, K, H, W) the net sees its channels after those of a. Under autocast
    only `net` runs in low precision, not the state and the log-determinant.
    """

    net: nn.Module
    kind: CouplingKind
    log_scale_limit: float | None
    shift_limit: float | None
    swapped: bool = False
    inverted: bool = False
    condition: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors that receive gradients."""
        given = () if self.condition is None else (self.condition,)
        return (*self.net.parameters(), *given)

    def flipped(self) -> "Coupling":
        """The inverse layer."""
        return replace(self, inverted=not self.inverted)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Apply the layer to x (B, C, H, W), C even."""
        a, b = self.halves(x)
        log_scale, shift = self._split(self.net(self._seen(a)).to(a.dtype))
        return self._joined(a, self._move(b, log_scale, shift)), self._log_det(log_scale)

    def pull_back(
        self, y: Tensor, grad: Tensor, grad_log_det: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """See `ChainLayer.pull_back`; the net is evaluated once, for both directions."""
        a, y_b = self.halves(y)
        grad_a, grad_b = self.halves(grad)
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            out = self.net(self._seen(a)).to(a.dtype)
        log_scale, shift = self._split(out.detach())
        b = self.flipped()._move(y_b, log_scale, shift)
        if log_scale is None:
            grad_out = self._shift_slope(shift) * grad_b
        else:
            # The inverse y_b = (b − t)·exp(−s) has the signs of all these gradients turned.
            by_log_scale = y_b if self.inverted else y_b - shift
            grad_log_scale = grad_b * by_log_scale + grad_log_det.view(-1, 1, 1, 1)
            scaled = grad_b * torch.exp(-log_scale if self.inverted else log_scale)
            grad_shift = self._shift_slope(shift) * (scaled if self.inverted else grad_b)
            grad_out = torch.cat([grad_log_scale * self._slope(log_scale), grad_shift], 1)
            grad_b = scaled
        grad_out = -grad_out if self.inverted else grad_out
        inputs = [a, *(t for t, want in zip(self.tensors, wanted, strict=True) if want)]
        from_net, *found = torch.autograd.grad(out, inputs, grad_out)
        grads = iter(found)
        return (
            self._joined(a.detach(), b),
            self._joined(grad_a + from_net, grad_b),
            [next(grads) if want else None for want in wanted],
        )

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The half a that conditions, and the half b that moves."""
        first, second = x.chunk(2, 1)
        return (second, first) if self.swapped else (first, second)

    def _seen(self, a: Tensor) -> Tensor:
        """What the net is given."""
        return a if self.condition is None else torch.cat([a, self.condition], 1)

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.swapped else [a, b], 1)

    def _split(self, out: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.kind == "additive":
            return None, self._bounded_shift(out)
        raw, shift = out.chunk(2, 1)
        shift = self._bounded_shift(shift)
        if self.log_scale_limit is None:
            return F.logsigmoid(raw + 2), shift
        return bounded(raw, self.log_scale_limit), shift

    def _bounded_shift(self, raw: Tensor) -> Tensor:
        return raw if self.shift_limit is None else bounded(raw, self.shift_limit)

    def _shift_slope(self, shift: Tensor) -> Tensor | float:
        """Derivative of the shift by what the net gave for it."""
        return 1.0 if self.shift_limit is None else 1 - (shift / self.shift_limit).square()

    def _slope(self, log_scale: Tensor) -> Tensor:
        """Derivative of the log-scale by what the net gave for it."""
        if self.log_scale_limit is None:
            return -torch.expm1(log_scale)
        return 1 - (log_scale / self.log_scale_limit).square()

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


@dataclass(frozen=True)
class PartCoupling(Coupling):
    """A coupling that moves channels `middle` to `stop` by what channels `start` to `middle` are.

    All other channels stay as they are and are not seen. `start` = `middle` = 0 and `stop` the
    number of channels moves all of them by the condition alone.
    """

    start: int = 0
    middle: int = 0
    stop: int = 0

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All channels that stay, and those that move."""
        return torch.cat([x[:, : self.middle], x[:, self.stop :]], 1), x[:, self.middle : self.stop]

    def _seen(self, a: Tensor) -> Tensor:
        return super()._seen(a[:, self.start : self.middle])

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a[:, : self.middle], b, a[:, self.middle :]], 1)
