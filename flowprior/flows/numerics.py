"""Small numerical helpers shared by the flows."""

import torch
import torch.distributed as dist
from torch import Tensor


def bounded(raw: Tensor, limit: float) -> Tensor:
    """Limit · tanh(raw / limit): the identity near 0, never beyond ±limit."""
    return limit * torch.tanh(raw / limit)


def unbounded(value: Tensor, limit: float) -> Tensor:
    """Inverse of `bounded`; values at or beyond ±limit go to just inside it."""
    ratio = (value / limit).clamp(-0.999, 0.999)
    return limit * torch.atanh(ratio)


def sum_spatial(x: Tensor) -> Tensor:
    """Sum over all dimensions but the first: (B, ...) to (B,)."""
    return x.flatten(1).sum(1)


@torch.no_grad()
def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of x (B, C, H, W), each (C,), in float64.

    The moments are taken over the batches of all processes, so that all of them initialise their
    layers with the same numbers.
    """
    values = x.detach().double().transpose(0, 1).flatten(1)
    mean = _reduced_mean(values)
    variance = _reduced_mean((values - mean[:, None]).square())
    return mean, variance.sqrt()


@torch.no_grad()
def channel_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the channels of x (B, C, H, W), in float64.

    Over the batches of all processes, as `channel_moments`.
    """
    values = x.detach().double().transpose(0, 1).flatten(1)
    mean = _reduced_mean(values)
    centred = values - mean[:, None]
    products = (centred[:, None] * centred[None]).flatten(0, 1)
    return mean, _reduced_mean(products).view(len(mean), len(mean))


def _reduced_mean(values: Tensor) -> Tensor:
    total = torch.cat([values.sum(1), values.new_tensor([values.shape[1]])])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total[:-1] / total[-1]
