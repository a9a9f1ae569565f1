"""The priors of a table, by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flowprior
from evaluation.loading import checked_device, found_weights
from evaluation.sources import Source
from flowprior.identity import code_digest, file_digest, identity
from flowprior.priors import Prior


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
        if isinstance(given, Prior):
            return identity(loaded)
        files = {file: file_digest(given / file) for file in ("model.safetensors", "config.json")}
        return {**files, "code": code_digest(type(loaded))}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded: every process loads its own, on its device."""
        return {**vars(self), "_loaded": {}}
