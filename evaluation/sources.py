"""What inversions start from: priors, and data that are simulated from a data set or measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import flowprior
from datamodules import ImageDataModule, Observations
from evaluation.experiment import Experiment, ImageShape, StartName
from evaluation.priors import PriorOfData
from evaluation.weights import checked_device, found_weights, weights_fingerprint
from flowprior.identity import code_digest, digest, identity
from flowprior.inversion import Forward, smoothed
from flowprior.priors import Prior

Split = Literal["val", "test"]
GivenPrior = Path | Prior | PriorOfData
_MOST_KEPT = 1000  # noiseless data of images
_FIRST = {"val": 10**9, "test": 0}  # noise of validation images must not be that of test images


class _Source:
    """Data of a number of images, on the CPU; what `SimulatedData` and `MeasuredData` share.

    Attributes:
        image_shape: (C, H, W), if the images are known.
        has_truth: whether they are.
        given: images (B, C, H, W) in [0, 1] to start from, if it has any.
        probed: what `probe` gives, where an error must say so.
    """

    image_shape: ImageShape | None
    has_truth: bool
    given: Tensor | None = None
    probed: str = ""

    def check_start(self, name: StartName) -> None:
        """Raise ValueError if it cannot give the images of `start`."""
        if name == "file" and self.given is None:
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
        if name == "depth":
            rows = torch.linspace(0.25, 0.75, shape[1])[:, None]
            return rows.expand(len(images), *shape).clone()
        if name == "file":
            return self.given[list(images)]
        return smoothed(self.truth(images), deviation)


class SimulatedData(_Source):
    """Images of a data set, unquantised, under the operator and noise of an experiment."""

    has_truth = True

    def __init__(self, data: ImageDataModule, images: int | None, split: Split = "test") -> None:
        self.data, self.images, self.split = data, images, split
        self.image_shape = data.image_shape
        self._operators: dict[str, Forward] = {}
        self._clean: dict[tuple[str, int], Tensor] = {}

    @property
    def count(self) -> int:
        """As many as there are, or as were asked for."""
        total = len(self.data.images(self.split))
        return min(self.images or total, total)

    def fingerprint(self) -> Any:
        """All images of the split, and the code of a data module of one's own."""
        code = code_digest(type(self.data))
        return identity({**self.data.fingerprint(self.split), **({"code": code} if code else {})})

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
        return self.data.unit_images(self.split, images)

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
        bases = type(physics).__mro__
        known = any(base.__module__.startswith(("deepinv.", "flowprior.")) for base in bases)
        mask = getattr(physics, "mask", None) if known else None  # 1 where data are measured
        indices = [_FIRST[self.split] + image for image in images]
        return experiment.noise.add(clean, seed=seed, indices=indices, observed=mask)

    def _operator(self, experiment: Experiment) -> tuple[str, Forward]:
        """The operator that makes the data, and a name for it; built once for all noise levels."""
        names = ("operators", "operator", "options", "data_options")
        key = json.dumps([experiment.fingerprint()[name] for name in names])
        if key not in self._operators:
            self._operators[key] = Forward(experiment.data_physics(self.image_shape))
        return key, self._operators[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed when it is needed."""
        return {**vars(self), "_operators": {}, "_clean": {}}


class MeasuredData(_Source):
    """A file of observations."""

    def __init__(self, path: Path) -> None:
        self.observations = found = Observations.load(path)
        self.given, self.has_truth = found.start, found.truth is not None
        self.count = len(found.y)
        self.probed = f"first row of the observations {tuple(found.y.shape)}"
        known = (images for images in (found.truth, found.start) if images is not None)
        self.image_shape = next((tuple(images.shape[1:]) for images in known), None)

    def fingerprint(self) -> Any:
        """Everything that the file holds."""
        found = self.observations
        parts = {"y": found.y, "truth": found.truth, "start": found.start}
        return digest(*(p for n, t in parts.items() if t is not None for p in (n, t)))

    def probe(self, experiment: Experiment, image_shape: ImageShape) -> Tensor:
        """The first row of the data."""
        given = experiment.assumed or experiment.data_options
        if given or experiment.assumed_noise is not None:
            raise ValueError(
                "assumed, assumed_noise and data_options are for simulated data, not for "
                "observations"
            )
        return self.observations.y[:1]

    def truth(self, images: Sequence[int]) -> Tensor | None:
        """True images from the file."""
        return self.observations.truth[list(images)] if self.has_truth else None

    def observed(self, experiment: Experiment, images: Sequence[int], seed: int) -> Tensor:
        """Data from the file."""
        return self.observations.y[list(images)]


Source = SimulatedData | MeasuredData


class PriorSource:
    """Loads priors when they are asked for, frozen, on this process's device.

    Args:
        priors: folders of exported weights, priors, or what makes one of a data set, by name.
        device: "auto" takes a GPU if there is one.
        data: of priors that are made of a data set and name none.

    Raises:
        ValueError: there is no such device, or no data set to make a prior of.
        WeightsError: a folder has no weights.
    """

    def __init__(
        self,
        priors: Mapping[str, GivenPrior],
        device: str = "auto",
        data: ImageDataModule | None = None,
    ) -> None:
        self.given = {
            name: given
            if isinstance(given, PriorOfData)
            else path_or_prior(given, f"priors.{name}")
            for name, given in priors.items()
        }
        for name, given in self.given.items():
            if isinstance(given, PriorOfData) and given.data is None and data is None:
                raise ValueError(
                    f"priors.{name}.data: with observations, name the data set whose training "
                    "images it is made of"
                )
        self.data = data
        checked_device(device)
        self._device = device
        self._loaded: dict[str, Prior] = {}

    @property
    def device(self) -> str:
        """Of this process: another that measures may have a GPU where this one has none."""
        return checked_device(self._device)

    def load(self, name: str) -> Prior:
        """The prior of a name."""
        if name not in self._loaded:
            prior = self._made(name, self.given[name])
            self._loaded[name] = prior.to(self.device).eval().requires_grad_(False)
        return self._loaded[name]

    def _made(self, name: str, given: GivenPrior) -> Prior:
        if not isinstance(given, PriorOfData):
            return flowprior.load(given) if isinstance(given, Path) else given
        prior = given.fit(self.data if given.data is None else given.data)
        if not isinstance(prior, Prior):
            raise ValueError(
                f"priors.{name}: fit of {type(given).__name__} must give a flowprior.priors.Prior, "
                f"got {type(prior).__name__}"
            )
        return prior

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
        return weights_fingerprint(given, loaded) if isinstance(given, Path) else identity(loaded)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded: every process loads its own, on its device."""
        return {**vars(self), "_loaded": {}}


def path_or_prior(given: object, name: str) -> Path | Prior:
    """A prior, or the folder of weights of that path or name; ValueError if it is neither."""
    if isinstance(given, Prior):
        return given
    if isinstance(given, str | Path):
        return found_weights(given, name)
    raise ValueError(
        f"{name}: expected a folder of weights or a flowprior.priors.Prior, got "
        f"{type(given).__name__}"
    )
