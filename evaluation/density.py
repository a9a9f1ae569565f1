"""How well a flow models a data set: likelihood, invertibility, typicality, speed, samples."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import flowprior
from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Labels, Published, Result, labels_text
from evaluation.experiment import check_names
from evaluation.table import Metric, Table
from evaluation.weights import checked_device, found_weights, weights_fingerprint
from flowprior.command_line import UsageError
from flowprior.figures import histogram, image_grid, qq_plot
from flowprior.flows import Flow, standard_normal_log_prob
from flowprior.identity import code_digest, identity
from flowprior.metrics import (
    coded_bits_per_dim,
    largest_patch_correlation,
    typicality,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 32


@dataclass(frozen=True)
class Trained:
    """A trained flow with the data to measure it on.

    Args:
        weights: folder that training exported.
        data: the data set; its test split is used, dequantised once with fixed noise.
        dimensions: number of pixels that bits per dimension count, where a border of known pixels
            surrounds the images; by default all.
    """

    weights: Path
    data: ImageDataModule
    dimensions: int | None = None

    @property
    def name(self) -> str:
        """Of the weights' folder, or of the run that it is in."""
        folder = self.weights.resolve()
        return folder.parent.name if folder.name == "weights" else folder.name

    def bits_per_dim(self, log_prob: Tensor, x: Tensor) -> Tensor:
        """Of images x (B, C, H, W) with log densities log_prob (B,), in nats: (B,)."""
        data, pixels = self.data, x[0].numel()
        bits = coded_bits_per_dim(log_prob, x, data.n_bits, data.data_range, data.flat_noise)
        return bits * (pixels / (self.dimensions or pixels))

    def load(self, device: str, option: str) -> Flow:
        """The flow, frozen.

        Args:
            device: where to put it.
            option: where the config has it, for errors.

        Raises:
            WeightsError: the weights are damaged.
            UsageError: its images are not of the data's shape and range, or have fewer pixels than
                `dimensions`.
        """
        flow = flowprior.load(self.weights, device)
        for name in ("image_shape", "data_range"):
            given, expected = getattr(flow, name), getattr(self.data, name)
            if tuple(given) != tuple(expected):
                raise UsageError(
                    f"{option}weights models images of {name} {given}, {option}data gives "
                    f"{expected}: they must be equal"
                )
        pixels = math.prod(flow.image_shape)
        if self.dimensions is not None and not 1 <= self.dimensions <= pixels:
            raise UsageError(
                f"{option}dimensions={self.dimensions}: expected 1 to {pixels}, the pixels of an "
                "image"
            )
        return flow


@dataclass(frozen=True)
class TrainedCell(Cell):
    """A row: one trained flow."""

    trained: Trained | None = None


class DensityEvaluation(Evaluation):
    """Test likelihood, reconstruction error, typicality of latents, speed and samples of flows.

    Args:
        weights: folder that training exported.
        data: the data set; its test split is used, dequantised once with fixed noise.
        others: further flows, a row for each.
        dimensions: of the first flow; see `Trained`.
        published: numbers of papers; those of no row stand below the table.
        images: number of test images, from the first; null for all.
        batch_size: images per batch.
        device: "auto" takes a GPU if there is one.

    Raises:
        ValueError: an option is out of its range.
        WeightsError: there are no weights.
    """

    title = "Density"
    metrics = (
        Metric("bits_per_dim", "Bits per dimension", higher_is_better=False),
        Metric("bits_per_dim", "Bits per dimension, median", statistic="median"),
        Metric("bits_per_dim", "Bits per dimension, maximum", statistic="maximum"),
        Metric("nll", "Negative log-likelihood", "nats", higher_is_better=False),
        Metric(
            "reconstruction_error", "Worst round trip, max |x − G(G⁻¹(x))|", statistic="maximum"
        ),
        Metric("radius", "Latent radius ‖z‖/√n (1)"),
        Metric("skewness", "Latent skewness (0)"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
        Metric("encoding_time", "Encoding", "ms/image", interval=False),
        Metric("decoding_time", "Decoding", "ms/image", interval=False),
    )
    parallel = False

    def __init__(
        self,
        weights: Path,
        data: ImageDataModule,
        others: list[Trained] | None = None,
        dimensions: int | None = None,
        published: list[Published] | None = None,
        images: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        for name, value in (("images", images), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.rows = [Trained(found_weights(weights), data, dimensions)]
        for place, other in enumerate(others or []):
            folder = found_weights(other.weights, f"others[{place}].weights")
            self.rows.append(replace(other, weights=folder))
        names = [trained.name for trained in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"others: folders of weights must have different names, got {names}")
        self.published = published or []
        self.images = images
        self.batch_size = batch_size
        self.device = checked_device(device)

    def check(self) -> None:
        """The flows must fit their data, and `published` the metrics."""
        _ = self.flows
        names = sorted({metric.name for metric in self.metrics})
        for published in self.published:
            check_names(published.metrics, names, "evaluation.published: no metric")

    def cells(self) -> Sequence[Cell]:
        """A row for each flow."""
        return [self._cell(trained) for trained in self.rows]

    def _cell(self, trained: Trained) -> Cell:
        flow, data = self.flows[trained.name], trained.data
        labels = {
            "flow": type(flow).__name__,
            "weights": trained.name,
            "data": f"{type(data).__name__} {'×'.join(map(str, data.image_shape))}",
        }
        code = code_digest(type(data))
        settings = {
            "weights": weights_fingerprint(trained.weights, flow),
            "data": identity(data.fingerprint()),
            **({"data_code": code} if code else {}),
            **({"dimensions": trained.dimensions} if trained.dimensions else {}),
        }
        images = range(len(data.images("test")))[: self.images]
        return TrainedCell(labels, images, settings, self.batch_size, trained=trained)

    def evaluate(
        self, cell: TrainedCell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Encode and decode images of the test split."""
        data, flow = cell.trained.data, self.flows[cell.trained.name]
        _, x = next(data.batches("test", len(images), images))
        with torch.no_grad():
            (z, log_det), encoding = self._timed(flow.encode, x.to(self.device))
            (back, _), decoding = self._timed(flow.decode, z)
        log_prob = standard_normal_log_prob(z) + log_det
        columns = {
            "bits_per_dim": cell.trained.bits_per_dim(log_prob.cpu(), x),
            "nll": -log_prob,
            "reconstruction_error": (back.cpu() - x).abs().flatten(1).amax(1),
            **typicality(z),
        }
        times = {"encoding_time": encoding, "decoding_time": decoding}
        self._keep(cell, images, x, z, arrays)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [{**dict(zip(columns, row, strict=True)), **times} for row in rows]

    def notes(self, table: Table) -> Sequence[str]:
        """What was published of flows that are no row here."""
        titles = {metric.name: metric.title for metric in reversed(self.metrics)}
        return [
            f"Published, {labels_text(one.labels)}: "
            + ", ".join(f"{titles[name]} {value:g}" for name, value in one.metrics.items())
            for one in self.published
            if not any(one.matches(row.labels) for row in table.rows)
        ]

    def figures(
        self, table: Table, results: Sequence[Result]
    ) -> Mapping[str, tuple["Figure", str]]:
        """Samples beside test images, latents against the normal distribution, likelihoods."""
        found: dict[str, tuple[Figure, str]] = {}
        bits: dict[str, list[float]] = {}
        for row in table.rows:
            name = row.labels["weights"]
            mine = [result for result in results if result.cell.labels == row.labels]
            suffix = "" if len(table.rows) == 1 else f"_{name}"
            figures = _figures_of(row.labels, [result for result in mine if "x" in result.arrays])
            found |= {f"{figure}{suffix}": value for figure, value in figures.items()}
            bits[f"{name}: {len(mine)} test images"] = [r.metrics["bits_per_dim"] for r in mine]
        if any(np.isfinite(values).any() for values in bits.values()):
            caption = "Likelihood of the test images."
            found["bits_per_dim"] = (histogram(bits, 40, "Bits per dimension"), caption)
        return found

    @cached_property
    def flows(self) -> dict[str, Flow]:
        """The trained flows by name, frozen and warm; see `Trained.load`."""
        options = ["evaluation.", *(f"evaluation.others[{n}]." for n in range(len(self.rows) - 1))]
        flows = {
            trained.name: trained.load(self.device, option)
            for trained, option in zip(self.rows, options, strict=True)
        }
        with torch.no_grad():
            for flow in flows.values():
                flow.encode(torch.zeros(1, *flow.image_shape, device=self.device))
        return flows

    def _keep(
        self, cell: TrainedCell, images: Sequence[int], x: Tensor, z: Tensor, arrays: ArrayStore
    ) -> None:
        """What figures show of the first images, and a sample of the flow for each of them."""
        flow = self.flows[cell.trained.name]
        for image, pixels, latent in zip(images, x, z, strict=True):
            if image < SHOWN:
                generator = torch.Generator().manual_seed(image)
                with torch.no_grad():
                    (sample,) = flow.sample(1, generator=generator)
                kept = {"x": pixels, "sample": sample}
                kept = {name: flow.to_unit_range(value) for name, value in kept.items()}
                arrays.save(cell.key, image, {"z": latent, **kept})

    def _timed(self, call: Callable[[Tensor], Any], of: Tensor) -> tuple[Any, float]:
        """What a call gives, and its milliseconds per row."""
        _wait(self.device)
        start = time.perf_counter()
        found = call(of)
        _wait(self.device)
        return found, 1e3 * (time.perf_counter() - start) / len(of)


def _figures_of(labels: Labels, shown: Sequence[Result]) -> dict[str, tuple["Figure", str]]:
    """Samples, test images and latents of one flow."""
    name, data = labels["weights"], labels["data"]
    titles = [f"{result.metrics['bits_per_dim']:.2f} bits/dim" for result in shown]
    found = {
        "samples": (
            _grid([result.arrays["sample"] for result in shown]),
            f"Samples of {name} at temperature 1, not selected.",
        ),
        "test_images": (
            _grid([result.arrays["x"] for result in shown], titles),
            f"The first test images of {data}, with their bits per dimension.",
        ),
    }
    if np.isfinite([result.metrics["bits_per_dim"] for result in shown]).any():
        found["latent_qq"] = _latents(shown, name)
    return found


def _grid(images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> "Figure":
    unit_range = np.stack(images).clip(0, 1)
    return image_grid(unit_range, titles=titles, value_range=(0, 1), label="value in [0, 1]")


def _latents(shown: Sequence[Result], name: str) -> tuple["Figure", str]:
    z = np.stack([result.arrays["z"] for result in shown])
    largest, independent = largest_patch_correlation(torch.from_numpy(z))
    return (
        qq_plot({f"latents of {len(shown)} test images": z}),
        f"All entries of the latents of these test images under {name}, against N(0, 1). Largest "
        f"correlation between two entries of a patch: {largest:.2f}; about {independent:.2f} for "
        "independent entries.",
    )


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
