"""The priors of a table, by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import flowprior
from evaluation.sources import Source
from flowprior.command_line import ROOT
from flowprior.identity import code_digest, file_digest, identity
from flowprior.priors import Prior
from flowprior.weights import WeightsError


class PriorSource:
    """Loads priors when they are asked for, frozen, on this process's device.

    Args:
        priors: folders of exported weights, or priors, by name.
        device: "auto" takes a GPU if there is one.

    Raises:
        ValueError: there is no prior, or no such device.
        WeightsError: a folder has no weights.
    """

    def __init__(self, priors: Mapping[str, Path | Prior], device: str = "auto") -> None:
        if not priors:
            raise ValueError("priors: at least one must be given by name")
        self.given = {
            name: prior if isinstance(prior, Prior) else found_weights(prior, f"priors.{name}")
            for name, prior in priors.items()
        }
        self.device = checked_device(device)
        self._loaded: dict[str, Prior] = {}

    def load(self, name: str) -> Prior:
        """The prior of a name."""
        if name not in self._loaded:
            given = self.given[name]
            prior = given if isinstance(given, Prior) else flowprior.load(given)
            self._loaded[name] = prior.to(self.device).eval().requires_grad_(False)
        return self._loaded[name]

    def check(self, source: Source) -> None:
        """Raise ValueError unless all priors model images such as those of the source."""
        for name in self.given:
            shape = self.load(name).image_shape
            if source.image_shape not in (None, shape):
                raise ValueError(
                    f"priors.{name} models images of shape {shape}, those to be recovered have "
                    f"{source.image_shape}"
                )

    def fingerprint(self, name: str) -> Any:
        """What tells a prior from others: its settings, weights and a user's own code."""
        given, loaded = self.given[name], self.load(name)
        return identity(loaded) if isinstance(given, Prior) else weights_fingerprint(given, loaded)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded: every process loads its own, on its device."""
        return {**vars(self), "_loaded": {}}


def weights_fingerprint(folder: Path, loaded: Prior) -> dict[str, Any]:
    """What tells exported weights from others: all of the folder, and a user's own code."""
    files = {file: file_digest(folder / file) for file in ("model.safetensors", "config.json")}
    return {**files, "code": code_digest(type(loaded))}


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
