"""Weights and devices that a config names."""

from pathlib import Path
from typing import Any

import torch

from flowprior.command_line import ROOT
from flowprior.identity import code_digest, file_digest, identity
from flowprior.priors import Prior
from flowprior.weights import SHIPPED, WeightsError


def weights_fingerprint(folder: Path, loaded: Prior) -> dict[str, Any]:
    """What tells exported weights from others: all of the folder, and a user's own code."""
    files = {file: file_digest(folder / file) for file in ("model.safetensors", "config.json")}
    own = {} if loaded.conditioning is None else {"condition": identity(loaded.conditioning)}
    return {**files, "code": code_digest(type(loaded)), **own}


def found_weights(folder: str | Path, option: str = "weights") -> Path:
    """The folder of an exported flow: as given, beside evaluate.py, or of the weights of that name.

    Raises WeightsError if it is in none of these places.
    """
    for candidate in (Path(folder), ROOT / folder, SHIPPED / folder):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise WeightsError(
        f"{option}: there is no exported flow in {folder}; train one first, "
        f"or give another folder with --evaluation.{option}"
    )


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
