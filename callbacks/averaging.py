"""Exponential moving average of the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Validates, samples and exports with the exponential moving average of the weights.

    It starts anew in each training phase. Buffers (ActNorm's flag, permutations) are copied, not
    averaged.

    Args:
        decay: weight of the past at each step, in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay must be in (0, 1), got {decay}")
        super().__init__(use_buffers=False, decay=decay)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        """Average; frozen weights are copied, because the mean of equal values is rounded."""
        super().on_train_batch_end(trainer, pl_module, *batch)
        pairs = zip(self._average_model.module.parameters(), pl_module.parameters(), strict=True)
        for average, current in pairs:
            if not current.requires_grad:
                average.copy_(current)
