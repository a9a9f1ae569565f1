"""How well a density model fits: bits per dimension."""

import math

from torch import Tensor


def bits_per_dim(
    log_prob: Tensor,
    dimensions: int,
    n_bits: int | None,
    data_range: tuple[float, float] = (-0.5, 0.5),
) -> Tensor:
    """Turn log densities (B,), in nats, into bits per dimension, (B,).

    With `n_bits` this bounds the code length of the quantised image: a density p on `data_range` in
    bins of width δ = (high − low)/2^n gives −(log p + D log δ)/(D ln 2). With None it is that of
    the continuous density for values scaled to a range of length 1.

    >>> import torch
    >>> bits_per_dim(torch.zeros(1), 10, n_bits=8)  # uniform density on a range of length 1
    tensor([8.])
    """
    low, high = data_range
    log_bin = math.log(high - low) - (n_bits or 0) * math.log(2)
    return -(log_prob / dimensions + log_bin) / math.log(2)
