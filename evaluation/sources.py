"""Where the data of an inversion come from: simulated from a data set, or measured."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules import ImageDataModule, Observations
from evaluation.experiment import Experiment, ImageShape, StartName
from flowprior.identity import digest, identity
from flowprior.inversion import Forward, smoothed

Split = Literal["val", "test"]
_MOST_KEPT = 1000  # noiseless data of images
_FIRST = {"val": 10**9, "test": 0}  # noise of validation images must not be that of test images


class Source(ABC):
    """Data of a number of images, on the CPU."""

    has_truth: bool
    has_start: bool = False

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of images."""

    @property
    @abstractmethod
    def image_shape(self) -> ImageShape | None:
        """(C, H, W), if the images are known."""

    @abstractmethod
    def fingerprint(self) -> Any:
        """What tells it from other sources, JSON-like."""

    @abstractmethod
    def probe(self, experiment: Experiment, image_shape: ImageShape) -> Tensor:
        """Data (B, ...) to check an experiment with, of no image that results depend on.

        Raises:
            ValueError: it cannot give the data of this experiment.
        """

    @abstractmethod
    def truth(self, images: Sequence[int]) -> Tensor | None:
        """The images (B, C, H, W) in [0, 1], if they are known."""

    @abstractmethod
    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """Data (B, ...)."""

    def given_start(self, images: Sequence[int]) -> Tensor | None:
        """Images (B, C, H, W) in [0, 1] to start from, if it has any."""
        return None

    def check_start(self, name: StartName) -> None:
        """Raise ValueError if it cannot give the images of `start`."""
        if name == "file" and not self.has_start:
            raise ValueError("start=file needs observations with start")
        if name == "smoothed_truth" and not self.has_truth:
            raise ValueError("start=smoothed_truth needs the true images")

    def start(
        self,
        name: StartName,
        images: Sequence[int],
        y: Tensor,
        shape: ImageShape,
        deviation: float,
    ) -> Tensor | None:
        """Images (B, C, H, W) in [0, 1] to start from; None for latents at random."""
        if name == "random":
            return None
        if name == "data":
            return y.clamp(0, 1)
        if name == "constant":
            return torch.full((len(images), *shape), 0.5)
        if name == "file":
            return self.given_start(images)
        return smoothed(self.truth(images), deviation)


class SimulatedData(Source):
    """Images of a data set, unquantised, under the operator and noise of an experiment."""

    has_truth = True

    def __init__(self, data: ImageDataModule, images: int | None, split: Split = "test") -> None:
        self.data, self.images, self.split = data, images, split
        self._operators: dict[str, Forward] = {}
        self._clean: dict[tuple[str, int], Tensor] = {}

    @property
    def count(self) -> int:
        """As many as there are, or as were asked for."""
        total = len(self.data.images(self.split))
        return min(self.images or total, total)

    @property
    def image_shape(self) -> ImageShape:
        """That of the data set."""
        return self.data.image_shape

    def fingerprint(self) -> Any:
        """All images of the split."""
        return identity(self.data.fingerprint(self.split))

    def probe(self, experiment: Experiment, image_shape: ImageShape) -> Tensor:
        """Data of noise: an operator may leave nothing of a grey image."""
        operator = self._operator(experiment)[1]
        try:
            generator = torch.Generator().manual_seed(0)
            clean = operator(torch.rand(1, *image_shape, generator=generator))
            return self._noisy(experiment, clean, [0], 0)
        except Exception as error:  # whatever a user's code raises
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{operator.name} and its noise make no data of an image of shape {image_shape}: "
                f"{reason}"
            ) from error

    def truth(self, images: Sequence[int]) -> Tensor:
        """Images of the split."""
        batches = self.data.batches(self.split, len(images), list(images), dequantized=False)
        low, high = self.data.data_range
        return (next(batches)[1] - low) / (high - low)

    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """A(x) and its noise, one image at a time: the others must not change the last digit."""
        key, operator = self._operator(experiment)
        if len(self._clean) > _MOST_KEPT:
            self._clean.clear()
        for image in images:
            if (key, image) not in self._clean:
                self._clean[key, image] = operator(self.truth([image]))
        clean = torch.cat([self._clean[key, image] for image in images])
        return self._noisy(experiment, clean, images, seed)

    def _noisy(
        self, experiment: Experiment, clean: Tensor, images: Sequence[int], seed: int
    ) -> Tensor:
        if experiment.noise is None:
            return clean
        physics = self._operator(experiment)[1].physics
        known = type(physics).__module__.startswith(("deepinv.", "flowprior."))
        mask = getattr(physics, "mask", None) if known else None  # 1 where data are measured
        indices = [_FIRST[self.split] + image for image in images]
        return experiment.noise.add(clean, seed=seed, indices=indices, observed=mask)

    def _operator(self, experiment: Experiment) -> tuple[str, Forward]:
        """The operator that makes the data, and a name for it; built once for all noise levels."""
        names = ("operators", "operator", "data_operator", "options", "data_options")
        key = json.dumps([experiment.fingerprint()[name] for name in names])
        if key not in self._operators:
            self._operators[key] = Forward(experiment.data_physics(self.image_shape))
        return key, self._operators[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed when it is needed."""
        return {**vars(self), "_operators": {}, "_clean": {}}


class MeasuredData(Source):
    """A file of observations."""

    def __init__(self, path: Path) -> None:
        self.observations = Observations.load(path)
        self.has_truth = self.observations.truth is not None
        self.has_start = self.observations.start is not None

    @property
    def count(self) -> int:
        """All rows of the file."""
        return len(self.observations.y)

    @property
    def image_shape(self) -> ImageShape | None:
        """That of the true images or starts in the file."""
        known = [self.observations.truth, self.observations.start]
        return next((tuple(images.shape[1:]) for images in known if images is not None), None)

    def fingerprint(self) -> Any:
        """Everything that the file holds."""
        found = self.observations
        parts = {"y": found.y, "truth": found.truth, "start": found.start}
        return digest(*(p for n, t in parts.items() if t is not None for p in (n, t)))

    def probe(self, experiment: Experiment, image_shape: ImageShape) -> Tensor:
        """The first row of the data."""
        if experiment.assumed or experiment.data_operator or experiment.data_options:
            raise ValueError(
                "assumed, data_operator and data_options are for simulated data, not for "
                "observations"
            )
        return self.observations.y[:1]

    def truth(self, images: Sequence[int]) -> Tensor | None:
        """True images from the file."""
        return _selected(self.observations.truth, images)

    def given_start(self, images: Sequence[int]) -> Tensor | None:
        """Starting images from the file."""
        return _selected(self.observations.start, images)

    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """Data from the file."""
        return self.observations.y[list(images)]


def _selected(tensor: Tensor | None, images: Sequence[int]) -> Tensor | None:
    return None if tensor is None else tensor[list(images)]
