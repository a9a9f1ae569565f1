"""The flow of an evaluation and where it computes."""

from pathlib import Path

import torch

import flowprior
from datamodules import ImageDataModule
from flowprior.command_line import ROOT, UsageError
from flowprior.flows import Flow
from flowprior.weights import WeightsError


def found_weights(folder: Path, option: str = "weights") -> Path:
    """The folder of an exported flow: as given, or beside evaluate.py.

    Raises WeightsError if it is in neither place.
    """
    for candidate in (folder, ROOT / folder):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise WeightsError(
        f"{option}: there is no exported flow in {folder}; train one first, "
        f"or give another folder with --evaluation.{option}"
    )


def load_flow(weights: Path, device: str, data: ImageDataModule | None = None) -> Flow:
    """A trained flow, frozen, that models images of the kind that the data gives.

    Raises:
        WeightsError: the weights are damaged.
        UsageError: the images differ in shape or range, so that likelihoods would be wrong.
    """
    flow = flowprior.load(weights, device)
    if data is None:
        return flow
    for name, expected in {"image_shape": data.image_shape, "data_range": data.data_range}.items():
        given = getattr(flow, name)
        if tuple(given) != tuple(expected):
            raise UsageError(
                f"evaluation.weights models images of {name} {given}, evaluation.data gives "
                f"{expected}: they must be equal"
            )
    return flow


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
