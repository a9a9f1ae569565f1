"""How fast flows generate images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import flowprior
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Result
from evaluation.table import SECONDS, Metric, Table
from evaluation.weights import checked_device, found_weights
from flowprior.figures import image_grid
from flowprior.flows import Flow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WARM_UP = 2
SHOWN = 8


@dataclass(frozen=True)
class Sampler:
    """A flow to generate with.

    Args:
        flow: its weights do not matter for its speed.
        cached: keep the inverses of 1×1 convolutions, as frozen flows do; False computes them in
            each call.
    """

    flow: Flow
    cached: bool = True


class SamplingSpeed(Evaluation):
    """Generation time and size of flows, which take turns in one run.

    Args:
        samplers: flows by name.
        batch_sizes: images in one call.
        repeats: calls at each batch size, after two that are not counted.
        device: "auto" takes a GPU if there is one.
        weights: folder of a trained flow, whose samples at different temperatures make a figure.
        temperatures: of the figure, from left to right.

    Raises:
        ValueError: an option is out of its range.
        WeightsError: there are no weights.
    """

    title = "Sampling speed"
    metrics = (
        Metric("milliseconds", "Time per image, minimum", "ms", statistic="minimum"),
        Metric("milliseconds", "Time per image, median", "ms", statistic="median"),
        Metric("parameters", "Parameters", "millions", interval=False),
    )
    parallel = False

    def __init__(
        self,
        samplers: dict[str, Sampler],
        batch_sizes: list[int] | None = None,
        repeats: int = 20,
        device: str = "auto",
        weights: Path | None = None,
        temperatures: list[float] | None = None,
    ) -> None:
        self.samplers = samplers
        self.batch_sizes = batch_sizes or [1, 64]
        self.repeats = repeats
        self.device = checked_device(device)
        self.weights = None if weights is None else found_weights(weights)
        self.temperatures = temperatures or [0.0, 0.5, 0.7, 0.8, 0.9, 1.0]
        if not samplers:
            raise ValueError("samplers must name at least one flow")
        if repeats < 1 or min(self.batch_sizes) < 1:
            raise ValueError("repeats and batch_sizes must be at least 1")
        if not all(0 <= temperature < math.inf for temperature in self.temperatures):
            raise ValueError(f"temperatures must be finite and >= 0, got {self.temperatures}")

    def cells(self) -> Sequence[Cell]:
        """A row for each batch size and flow; times of another run do not compare."""
        settings = {
            "samplers": [
                [name, type(sampler.flow).__name__, sampler.flow.arguments, sampler.cached]
                for name, sampler in self.samplers.items()
            ],
            "batch_sizes": self.batch_sizes,
            "repeats": self.repeats,
            "device": self.device,
        }
        return [
            Cell({"batch": size, "flow": name}, range(self.repeats), settings, self.repeats)
            for size in self.batch_sizes
            for name in self.samplers
        ]

    def evaluate(
        self, cell: Cell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Times of the calls; each call takes the place of an image."""
        name, size = cell.labels["flow"], cell.labels["batch"]
        flow = self.samplers[name].flow
        parameters = sum(parameter.numel() for parameter in flow.parameters()) / 1e6
        seconds = self._seconds[size, name] / size
        return [
            {
                "milliseconds": 1e3 * seconds[call],
                SECONDS.name: seconds[call],
                "parameters": parameters,
            }
            for call in images
        ]

    def notes(self, table: Table) -> Sequence[str]:
        """What n counts."""
        return ["n: calls of each flow. Flows take turns, after two calls that are not counted."]

    def figures(self, table: Table, results: Sequence[Result]) -> Mapping[str, tuple[Figure, str]]:
        """Samples of the trained flow: the same latents at every temperature."""
        if self.weights is None:
            return {}
        flow = flowprior.load(self.weights)
        rows = [
            flow.to_unit_range(
                flow.sample(SHOWN, temperature, generator=torch.Generator().manual_seed(0))
            )
            for temperature in self.temperatures
        ]
        images = torch.stack(rows, 1).flatten(0, 1).clamp(0, 1).numpy()
        titles = [f"temperature {temperature:g}" for temperature in self.temperatures]
        figure = image_grid(
            images, len(titles), titles, value_range=(0, 1), label="value in [0, 1]"
        )
        return {
            "temperatures": (figure, f"Samples of {self.weights.name}: one latent in each row.")
        }

    @cached_property
    def _seconds(self) -> dict[tuple[int, str], np.ndarray]:
        """Seconds of every call, by batch size and flow. Flows take turns."""
        for sampler in self.samplers.values():
            sampler.flow.to(self.device).eval().requires_grad_(not sampler.cached)
        found: dict[tuple[int, str], list[float]] = {}
        for size in self.batch_sizes:
            for _ in range(WARM_UP + self.repeats):
                for name, sampler in self.samplers.items():
                    found.setdefault((size, name), []).append(self._call(sampler.flow, size))
        return {key: np.array(seconds[WARM_UP:]) for key, seconds in found.items()}

    @torch.no_grad()
    def _call(self, flow: Flow, size: int) -> float:
        z = torch.randn(size, *flow.latent.shape, device=self.device)
        self._wait()
        start = time.perf_counter()
        flow.generate(z)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
