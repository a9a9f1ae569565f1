"""Exponential moving average of the weights."""

from pytorch_lightning.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Validates, samples and exports with the exponential moving average of the weights.

    Buffers (ActNorm's flag, permutations) are copied, not averaged.

    Args:
        decay: weight of the past at each step, in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay must be in (0, 1), got {decay}")
        super().__init__(use_buffers=False, decay=decay)
