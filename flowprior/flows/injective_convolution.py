"""Injective 1×1 convolutions, which double the number of channels."""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from flowprior.flows.frozen import FrozenCache, are_frozen
from flowprior.flows.invertible_convolution import pixel_affine
from flowprior.flows.numerics import channel_covariance

InjectiveKind = Literal["linear", "relu"]
Value = TypeVar("Value")


class InjectiveConvolution(nn.Module):
    r"""A 1×1 convolution from c/2 to c channels, and its Tikhonov pseudo-inverse.

    "linear": x = W z + b with W (c, c/2), inverted by z = (WᵀW + λI)⁻¹ Wᵀ (x − b).
    "relu": x = ReLU([W; −W] z + [b; −b]) with W (c/2, c/2); since ReLU(t) − ReLU(−t) = t, it is
    inverted by z = (WᵀW + λI)⁻¹ Wᵀ ([I −I] x − b). W starts with orthonormal
    columns.

    Reference: Kothari et al., "Trumpets" (2021), section 3.1.

    Args:
        channels: c, even, of the larger side.
        kind: "linear" or "relu".
        tikhonov: λ > 0; the inverse is exact up to λ / s², with the singular values s of W.
    """

    def __init__(self, channels: int, kind: InjectiveKind, tikhonov: float) -> None:
        super().__init__()
        narrow = channels // 2
        tall = narrow if kind == "relu" else channels
        columns = torch.linalg.qr(torch.randn(tall, narrow).double())[0]
        self.weight = nn.Parameter(columns.to(torch.get_default_dtype()))
        self.bias = nn.Parameter(torch.zeros(tall))
        self.kind = kind
        self.tikhonov = tikhonov
        self._inverses = FrozenCache[tuple[Tensor, Tensor]]()
        self._log_dets = FrozenCache[Tensor]()

    def expand(self, z: Tensor) -> Tensor:
        """Images x (B, c, H, W) of z (B, c/2, H, W)."""
        x = _exactly(z, self.weight, self.bias)
        return torch.cat([x.relu(), (-x).relu()], 1) if self.kind == "relu" else x

    def contract(self, x: Tensor) -> Tensor:
        """The pseudo-inverse: z (B, c/2, H, W) of x (B, c, H, W)."""
        if self.kind == "relu":
            positive, negative = x.chunk(2, 1)
            x = positive - negative
        return _exactly(x, *self._kept(self._inverses, self._pseudo_inverse))

    def log_det(self) -> Tensor:
        """½ log det WᵀW = Σ log s of one pixel, for `expand`, ()."""
        return self._kept(self._log_dets, self._half_log_det)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        """Keep as much as possible of the images x (B, c, H, W); returns z (B, c/2, H, W).

        A linear layer takes the leading principal components of their pixels, over all processes.
        Their signs, which the library chooses otherwise, make a fixed sum of entries positive.
        """
        if self.kind == "linear":
            mean, covariance = channel_covariance(x)
            leading = torch.linalg.eigh(covariance)[1].flip(1)[:, : self.weight.shape[1]]
            sums = (1 / torch.arange(1, len(leading) + 1).to(leading)) @ leading
            self.weight.copy_(torch.where(sums < 0, -leading, leading))
            self.bias.copy_(mean)
        return self.contract(x)

    def _kept(self, cache: FrozenCache[Value], compute: Callable[[], Value]) -> Value:
        """Computed in float64, kept in the type of the weights while these are frozen."""
        frozen = are_frozen(self.parameters())
        return cache.get(self.parameters(), compute, self.tikhonov) if frozen else compute()

    def _pseudo_inverse(self) -> tuple[Tensor, Tensor]:
        """Its matrix (c/2, ·) and offset (c/2,)."""
        gram = self._gram()
        regular = gram + self.tikhonov * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.solve(regular, self.weight.double().mT)
        offset = -(inverse @ self.bias.double())
        return inverse.to(self.weight.dtype), offset.to(self.weight.dtype)

    def _half_log_det(self) -> Tensor:
        return (0.5 * torch.linalg.slogdet(self._gram())[1]).to(self.weight.dtype)

    def _gram(self) -> Tensor:
        weight = self.weight.double()
        return weight.mT @ weight


def _exactly(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    """`pixel_affine` in the type of the weights, also under autocast: nothing is to be rounded."""
    with torch.autocast(x.device.type, enabled=False):
        return pixel_affine(x, weight, offset)
