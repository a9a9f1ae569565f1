"""Where an evaluation computes."""

import torch


def checked_device(device: str) -> str:
    """The device of that name, "auto" resolved; ValueError if it is not on this machine."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not on this machine
        reason = str(error).splitlines()[0]
        raise ValueError(f'device={device}: expected "auto", "cpu" or "cuda": {reason}') from None
    return device
