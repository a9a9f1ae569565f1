"""Exponential moving average of the weights."""

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn


class EMA(WeightAveraging):
    """Validates, samples and exports with the exponential moving average of the weights.

    It starts anew in each training phase. Buffers (ActNorm's flag, permutations) are copied, not
    averaged.

    Args:
        decay: weight of the past at each step, in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay must be in (0, 1), got {decay}")
        mean = get_ema_avg_fn(decay)

        def average(past: Tensor, now: Tensor, count: Tensor) -> Tensor:
            # Frozen weights stay exactly as they are: the mean of equal values is rounded.
            return torch.where(past == now, past, mean(past, now, count))

        super().__init__(use_buffers=False, avg_fn=average)
