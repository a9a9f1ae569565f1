"""Whether the iterations were enough."""

from collections.abc import Mapping

import torch
from torch import Tensor

STILL = 0.5
"""Percent: a loss that falls by more in the last tenth of its iterations has not converged."""


def fall(history: Mapping[str, Tensor]) -> Tensor:
    """By how many percent losses fell in the last tenth of the iterations, (B,); 0 if they rose.

    Of the larger of loss and misfit at the end: a loss may be about 0, or negative. Where "scale"
    has changed, as that of `MultiScale` does, only the iterations since then count: losses before
    are of other data. NaN if there is only one loss since.

    Args:
        history: "loss" and perhaps "misfit" and "scale", (iterations + 1, B) each, after one
            iteration or more.
    """
    loss = history["loss"]
    if "scale" in history:
        loss = loss[(history["scale"] == history["scale"][-1]).all(1)]
    if len(loss) < 2:
        return torch.full_like(loss[-1], torch.nan)
    last, tenth = loss[-1], max(1, (len(loss) - 1) // 10)
    size = last.abs().maximum(history.get("misfit", loss)[-1].abs())
    return 100 * (loss[-1 - tenth] - last).clamp(min=0) / torch.where(size > 0, size, 1)
