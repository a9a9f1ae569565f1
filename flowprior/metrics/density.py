"""How well a density model fits: bits per dimension."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.argument_types import check_types

FLAT_NOISE_STD = 1 / 6
"""Standard deviation of the noise in flat areas, in levels; it is cut off at three of them."""

_LOG_PEAK = -math.log(FLAT_NOISE_STD * math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)))


def bits_per_dim(
    log_prob: Tensor,
    dimensions: int,
    n_bits: int | None,
    data_range: tuple[float, float] = (-0.5, 0.5),
) -> Tensor:
    """Turn log densities (B,), in nats, into bits per dimension, (B,).

    With `n_bits` this bounds the code length of the quantised image: a density p on `data_range` in
    bins of width δ = (high − low)/2^n gives −(log p + D log δ)/(D ln 2). With None it is that of
    the continuous density for values scaled to a range of length 1. For noise that is not uniform,
    take the noise's log density from log p.

    >>> import torch
    >>> bits_per_dim(torch.zeros(1), 10, n_bits=8)  # uniform density on a range of length 1
    tensor([8.])
    """
    check_types(bits_per_dim, locals())
    low, high = data_range
    log_bin = math.log(high - low) - (n_bits or 0) * math.log(2)
    return -(log_prob / dimensions + log_bin) / math.log(2)


def coded_bits_per_dim(
    log_prob: Tensor,
    images: Tensor,
    n_bits: int | None,
    data_range: tuple[float, float],
    flat_noise: bool,
) -> Tensor:
    """Bits per dimension, (B,), of dequantised images with their log densities log_prob (B,).

    Args:
        log_prob: in nats.
        images: (B, C, H, W) in `data_range`.
        n_bits: bits that they were quantised to, or None.
        data_range: (low, high).
        flat_noise: whether the noise is that of `flat_noise_log_density`; otherwise it is uniform.
    """
    check_types(coded_bits_per_dim, locals())
    if flat_noise:
        log_prob = log_prob - flat_noise_log_density(images, n_bits, data_range)
    return bits_per_dim(log_prob, images[0].numel(), n_bits, data_range)


def flat_noise_log_density(
    images: Tensor, n_bits: int, data_range: tuple[float, float] = (-0.5, 0.5)
) -> Tensor:
    """Log density of the noise in images that were dequantised with `flat_noise`, (B,), in nats.

    In a flat area, where a pixel's level is that of its 8 neighbours, the noise u in [0, 1) of a
    level is N(1/2, 1/36), cut off at 0 and 1; elsewhere it is uniform. Its density q enters the
    bound log P(level) ≥ E_q[log p(x) − log q(u)] of variational dequantisation (Ho et al., Flow++,
    2019, eq. 12).

    Args:
        images: dequantised images (B, C, H, W) in `data_range`.
        n_bits: bits that they were quantised to.
        data_range: (low, high).
    """
    check_types(flat_noise_log_density, locals())
    low, high = data_range
    exact = (images.detach().double() - low) * (2**n_bits / (high - low))
    levels = exact.floor()
    padded = F.pad(levels, (1, 1, 1, 1), mode="replicate")
    flat = (F.max_pool2d(padded, 3, 1) == levels) & (-F.max_pool2d(-padded, 3, 1) == levels)
    log_density = _LOG_PEAK - 0.5 * ((exact - levels - 0.5) / FLAT_NOISE_STD).square()
    return torch.where(flat, log_density, 0).flatten(1).sum(1).to(images.dtype)
