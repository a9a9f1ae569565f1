"""Learning rates that change during training."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up to the optimiser's rate, then half a cosine down to `final` times it.

    Call `step` after each optimiser step. After the last step of the schedule the rate stays.

    Args:
        optimizer: whose rates change.
        warmup_steps: optimiser steps until the full rate is reached.
        total_steps: optimiser steps of the whole schedule; None for the length of the training
            phase, which `FlowModule` fills in.
        final: last rate, as a fraction of the full one.

    Raises:
        ValueError: if an argument is out of range, naming it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int | None = None,
        final: float = 0.01,
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 <= final <= 1:
            raise ValueError(f"final must be in [0, 1], got {final}")
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final = final
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """The rate of each parameter group at this step."""
        return [rate * self._factor(self.last_epoch) for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.total_steps is None:
            return 1.0
        length = max(self.total_steps - self.warmup_steps, 1)
        share = min((step - self.warmup_steps) / length, 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2
