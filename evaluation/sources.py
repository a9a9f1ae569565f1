"""Where the data of an inversion come from: simulated from a data set, or measured."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from datamodules import ImageDataModule, Observations
from evaluation.experiment import Experiment
from evaluation.fingerprints import data_fingerprint, digest

Split = Literal["val", "test"]


class Source(ABC):
    """Data of a number of images, on the CPU."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of images."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W), if the images are known."""

    @abstractmethod
    def fingerprint(self) -> Any:
        """What tells it from other sources, JSON-like."""

    @abstractmethod
    def check(self, experiment: Experiment) -> None:
        """Raise ValueError if it cannot give the data of an experiment."""

    @abstractmethod
    def truth(self, images: Sequence[int]) -> Tensor | None:
        """The images (B, C, H, W) in [0, 1], if they are known."""

    @abstractmethod
    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """Data (B, ...)."""

    def start(self, images: Sequence[int]) -> Tensor | None:
        """Images (B, C, H, W) in [0, 1] to start from, if it has any."""
        return None


class SimulatedData(Source):
    """Images of a data set, unquantised, under the operator and noise of an experiment."""

    def __init__(self, data: ImageDataModule, images: int | None, split: Split = "test") -> None:
        self.data, self.images, self.split = data, images, split

    @property
    def count(self) -> int:
        """As many as there are, or as were asked for."""
        total = len(self.data.images(self.split))
        return min(self.images or total, total)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """That of the data set."""
        return self.data.image_shape

    def fingerprint(self) -> Any:
        """All images of the split."""
        return data_fingerprint(self.data, self.split)

    def check(self, experiment: Experiment) -> None:
        """Build both operators: wrong options are found before anything is measured."""
        experiment.physics(self.image_shape)
        experiment.data_physics(self.image_shape)

    def truth(self, images: Sequence[int]) -> Tensor:
        """Images of the split."""
        batches = self.data.batches(self.split, len(images), list(images), dequantized=False)
        low, high = self.data.data_range
        return (next(batches)[1] - low) / (high - low)

    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """A(x) and its noise."""
        physics = experiment.data_physics(self.image_shape)
        clean = physics.A(self.truth(images))
        if experiment.noise is None:
            return clean
        mask = getattr(physics, "mask", None)
        return experiment.noise.add(clean, seed=seed, indices=list(images), observed=mask)


class MeasuredData(Source):
    """A file of observations."""

    def __init__(self, path: Path) -> None:
        self.observations = Observations.load(path)

    @property
    def count(self) -> int:
        """All rows of the file."""
        return len(self.observations.y)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """That of the true images or starts in the file."""
        known = [self.observations.truth, self.observations.start]
        return next((tuple(images.shape[1:]) for images in known if images is not None), None)

    def fingerprint(self) -> Any:
        """Everything that the file holds."""
        found = self.observations
        parts = {"y": found.y, "truth": found.truth, "start": found.start}
        return digest(*(p for n, t in parts.items() if t is not None for p in (n, t)))

    def check(self, experiment: Experiment) -> None:
        """Another true operator is for simulated data."""
        if experiment.assumed or experiment.data_operator or experiment.data_options:
            raise ValueError(
                "experiments: assumed, data_operator and data_options are for simulated data, "
                "not for observations"
            )

    def truth(self, images: Sequence[int]) -> Tensor | None:
        """True images from the file."""
        return _selected(self.observations.truth, images)

    def start(self, images: Sequence[int]) -> Tensor | None:
        """Starting images from the file."""
        return _selected(self.observations.start, images)

    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """Data from the file."""
        return self.observations.y[list(images)]


def _selected(tensor: Tensor | None, images: Sequence[int]) -> Tensor | None:
    return None if tensor is None else tensor[list(images)]
