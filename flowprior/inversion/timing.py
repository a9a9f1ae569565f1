"""Time that was spent on a device."""

import time

import torch


def now(device: torch.device | None = None) -> float:
    """Seconds, once the work of a device, if it is a GPU, is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
