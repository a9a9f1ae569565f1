"""How much the samples of a flow differ from images: Fréchet distances of their features."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.base import Result
from evaluation.table import SECONDS, Metric
from flowprior.command_line import ROOT
from flowprior.downloads import fetched
from flowprior.identity import identity
from flowprior.metrics import frechet_distance, load_classifier

LEAST = 2


class Features(ABC):
    """Numbers of an image, by whose distribution samples are compared with test images.

    Attributes:
        name: of the metric.
        title: of its column.
        hint: how to get the features where they are n/a.
    """

    name: str
    title: str
    hint: str = ""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor | None:
        """Features (B, F) of images (B, C, H, W) in [0, 1]; None where they cannot be had."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Distance of the samples from the test images, and that of as many training images."""
        return (
            Metric(self.name, self.title, "", False, "n/a", interval=False),
            Metric(f"{self.name}_training", f"{self.title}, training images", interval=False),
        )

    def of(self, sets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Arrays to keep: features of sets of images in [0, 1], by name of the set.

        Raises:
            ValueError: they are not (B, F).
        """
        found = {name: self(images) for name, images in sets.items()}
        found = {name: features for name, features in found.items() if features is not None}
        for name, features in found.items():
            shape, count = tuple(getattr(features, "shape", ())), len(sets[name])
            if len(shape) != 2 or shape[0] != count:
                raise ValueError(
                    f"features: {type(self).__name__} must give (B, F) of images (B, C, H, W), "
                    f"here ({count}, F), got {shape or type(features).__name__}"
                )
        return {f"{self.name}_{name}": features for name, features in found.items()}

    def distances(self, results: Sequence[Result]) -> dict[str, float]:
        """By metric, from what `of` kept for "test", "sample" and "training"."""
        sets = {
            name: [r.arrays[key] for r in results if (key := f"{self.name}_{name}") in r.arrays]
            for name in ("test", "sample", "training")
        }
        if min(map(len, sets.values())) < LEAST:
            return {}
        test, sample, training = (torch.from_numpy(np.stack(rows)) for rows in sets.values())
        found = {self.name: sample, f"{self.name}_training": training}
        return {
            name: frechet_distance(rows, test) if rows.isfinite().all() else math.nan
            for name, rows in found.items()
        }


def check_features(rows: Mapping[str, Sequence[Features]], metrics: Sequence[Metric]) -> None:
    """Raise ValueError if features of rows, by place in the config, lack a name or share one.

    Equal features of several rows are one column; `metrics` are further columns.
    """
    owners = {metric.name: ("every table", None) for metric in (*metrics, SECONDS)}
    for place, features in rows.items():
        of_row: set[str] = set()
        for one in features:
            owner = type(one).__name__
            if not (getattr(one, "name", "") and getattr(one, "title", "")):
                raise ValueError(f"{place}features: {owner} needs a `name` and a `title`")
            known = identity(one)
            for name in dict.fromkeys(metric.name for metric in one.metrics):
                other, same = owners.setdefault(name, (owner, known))
                if name in of_row or same != known:
                    raise ValueError(
                        f"{place}features: {owner} has a metric named {name!r}, as {other} has: "
                        "different features need names of their own"
                    )
                of_row.add(name)


class DigitFeatures(Features):
    """Features of a small classifier of digits (`flowprior.metrics.DigitClassifier`).

    They are no features of Inception-v3: the distance is no FID, and compares with none.

    Args:
        weights: safetensors file of the classifier.

    Raises:
        ValueError: the file is missing, damaged or of another network.
    """

    name = "digit_distance"
    title = "Fréchet distance (digit features)"

    def __init__(self, weights: Path = Path("weights/classifier_mnist/model.safetensors")) -> None:
        self.weights = weights if weights.is_file() else ROOT / weights
        self._model = load_classifier(self.weights)

    def __call__(self, images: Tensor) -> Tensor:
        """See `Features`."""
        with torch.no_grad():
            return self._model.to(images.device).features(images.float())


class Inception(Features):
    """Features of Inception-v3, by torchmetrics: the distance is FID.

    Grey images are repeated to three channels; values are clamped and rounded to 8 bits.
    """

    name = "fid"
    title = "FID"
    hint = (
        "FID is n/a: its network is not on this machine. With access to the internet, pip install "
        "torch-fidelity, then measure into a new folder; torchmetrics downloads the weights once."
    )

    def __call__(self, images: Tensor) -> Tensor | None:
        """See `Features`."""
        if self._network is None:
            return None
        pixels = (255 * images.clamp(0, 1).nan_to_num()).round().to(torch.uint8)
        pixels = pixels.expand(-1, 3, -1, -1) if images.shape[1] == 1 else pixels
        with torch.no_grad():
            return self._network.to(images.device)(pixels)

    @cached_property
    def _network(self) -> Any | None:
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError:
            return None
        make = partial(NoTrainInceptionV3, "inception-v3-compat", ["2048"])
        network = fetched(URL_INCEPTION_V3, make)
        return None if network is None else network.eval()
