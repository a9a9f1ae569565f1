"""How well a flow models a data set: likelihood, invertibility, typicality, speed, samples."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules import ImageDataModule
from evaluation.arrays import ArrayStore
from evaluation.base import Cell, Evaluation, Published, Result, labels_text
from evaluation.density_figures import figures_of
from evaluation.experiment import check_names
from evaluation.features import Features, check_features
from evaluation.table import Metric, Table
from evaluation.trained import Trained, TrainedCell, found_rows, has_weights
from evaluation.weights import checked_device, found_weights, weights_fingerprint
from flowprior.distribution_figures import histogram
from flowprior.flows import Flow, standard_normal_log_prob
from flowprior.identity import code_digest, identity
from flowprior.metrics import relative_error, typicality
from flowprior.priors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 32


class DensityEvaluation(Evaluation):
    """Test likelihood, reconstruction error, typicality of latents, speed and samples of flows.

    For an injective flow the likelihood is that of the projections on the surface that it fills;
    there are no bits per dimension, and the reconstruction error is that of the projection.

    Args:
        weights: folder that training exported.
        data: the data set; its test split is used, dequantised once with fixed noise.
        others: further flows, a row for each.
        dimensions: of the first flow; see `Trained`.
        published: numbers of papers; those of no row stand below the table.
        features: of the first flow; see `Trained`.
        neumann_terms: of the series by which the paper of TRUMPET estimates likelihoods; None for
            no such estimate.
        likelihoods: number of test images, from the first, for which an injective flow computes
            likelihoods, which take a derivative for each latent; null for all.
        images: number of test images, from the first; null for all.
        batch_size: images per batch.
        device: "auto" takes a GPU if there is one.

    Raises:
        ValueError: an option is out of its range, or features share a name.
        WeightsError: there are no weights.
    """

    title = "Density"
    metrics = (
        Metric("bits_per_dim", "Bits per dimension", higher_is_better=False),
        Metric("bits_per_dim", "Bits per dimension, median", statistic="median"),
        Metric("bits_per_dim", "Bits per dimension, maximum", statistic="maximum"),
        Metric("relative_error", "Relative error ‖x − G(G†(x))‖/‖x‖", higher_is_better=False),
        Metric("nll", "Negative log-likelihood", "nats", higher_is_better=False),
        Metric("neumann_nll", "NLL by Neumann series", "nats"),
        Metric("neumann_bias", "Neumann series less exact", "nats"),
        Metric(
            "reconstruction_error", "Worst round trip, max |x − G(G⁻¹(x))|", statistic="maximum"
        ),
        Metric("radius", "Latent radius ‖z‖/√n (1)"),
        Metric("skewness", "Latent skewness (0)"),
        Metric("kurtosis", "Latent kurtosis (3)"),
        Metric("patch_energy_spread", "Spread of patch energies (1)"),
        Metric("encoding_time", "Encoding", "ms/image", interval=False),
        Metric("decoding_time", "Decoding", "ms/image", interval=False),
        Metric("parameters", "Parameters", "M", interval=False),
        Metric("training_hours", "Training", "h", interval=False),
    )
    parallel = False

    def __init__(
        self,
        weights: Path,
        data: ImageDataModule,
        others: list[Trained] | None = None,
        dimensions: int | None = None,
        published: list[Published] | None = None,
        features: list[Features] | None = None,
        neumann_terms: int | None = None,
        likelihoods: int | None = None,
        images: int | None = None,
        batch_size: int = 64,
        device: str = "auto",
    ) -> None:
        counts = {"images": images, "batch_size": batch_size}
        counts |= {"neumann_terms": neumann_terms, "likelihoods": likelihoods}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        others = others or []
        self.absent = [one for one in others if one.optional and not has_weights(one.weights)]
        first = Trained(found_weights(weights), data, dimensions, features=features or [])
        self.rows = {"": first, **found_rows(others, self.absent)}
        names = [trained.name for trained in self.rows.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"others: folders of weights must have different names, got {names}")
        self.published = published or []
        rows = [*self.rows.values(), *self.absent]
        places = {f"others[{k}].": other.features for k, other in enumerate(others)}
        check_features({"": first.features, **places}, self.metrics)
        self.features = {one.name: one for trained in rows for one in trained.features}
        columns = [metric for one in self.features.values() for metric in one.metrics]
        self.metrics = (*self.metrics, *columns)
        self.neumann_terms = neumann_terms
        self.likelihoods = likelihoods
        self.images = images
        self.batch_size = batch_size
        checked_device(device)
        self._device = device

    @property
    def device(self) -> str:
        """Of this process: another that measures may have a GPU where this one has none."""
        return checked_device(self._device)

    def check(self) -> None:
        """The flows must fit their data, and `published` the metrics."""
        for flow in self.flows.values():
            if flow.injective and self.neumann_terms is not None:
                require(flow, ["neumann_log_prob"], "evaluation.neumann_terms", "set it to null")
        names = sorted({metric.name for metric in self.metrics})
        for published in self.published:
            check_names(published.metrics, names, "evaluation.published: no metric")

    def cells(self) -> Sequence[Cell]:
        """A row for each flow."""
        return [self._cell(trained) for trained in self.rows.values()]

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
            **self.own_code(),
            **({"training": identity(data.fingerprint("train"))} if trained.features else {}),
            **({"dimensions": trained.dimensions} if trained.dimensions else {}),
            **({"features": identity(trained.features)} if trained.features else {}),
            **(self._counts if flow.injective else {}),
        }
        images = range(len(data.images("test")))[: self.images]
        return TrainedCell(labels, images, settings, self.batch_size, trained=trained)

    def evaluate(
        self, cell: TrainedCell, images: Sequence[int], arrays: ArrayStore
    ) -> Sequence[Mapping[str, float]]:
        """Encode and decode images of the test split."""
        trained, flow = cell.trained, self.flows[cell.trained.name]
        _, x = next(trained.data.batches("test", len(images), images))
        measured = self._injective if flow.injective else self._bijective
        with torch.no_grad():
            found, columns, times = measured(trained, flow, x.to(self.device), images)
        columns |= typicality(found["z"])
        constants = {"parameters": sum(p.numel() for p in flow.parameters()) / 1e6, **times}
        if trained.hours is not None:
            constants["training_hours"] = trained.hours
        self._keep(cell, images, x, found, arrays)
        rows: list[dict[str, float]] = [dict(constants) for _ in images]
        for name, values in columns.items():  # a column may be of the first images alone
            for row, value in zip(rows, values.tolist(), strict=False):
                row[name] = value
        return rows

    def _bijective(
        self, trained: Trained, flow: Flow, x: Tensor, images: Sequence[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """Encode and decode images x (B, C, H, W) by a bijective flow.

        Returns:
            Latents "z", values (B,) by name, and milliseconds per image by name.
        """
        (z, log_det), encoding = self._timed(flow.encode, x)
        (back, _), decoding = self._timed(flow.decode, z)
        log_prob = standard_normal_log_prob(z) + log_det
        columns = {
            "bits_per_dim": trained.bits_per_dim(log_prob.cpu(), x.cpu()),
            "nll": -log_prob,
            "reconstruction_error": (back - x).abs().flatten(1).amax(1),
        }
        return {"z": z}, columns, {"encoding_time": encoding, "decoding_time": decoding}

    def _injective(
        self, trained: Trained, flow: Flow, x: Tensor, images: Sequence[int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """Encode and decode images x (B, C, H, W) by an injective flow.

        Only the first `likelihoods` images have a likelihood, and an estimate of it by random
        numbers of their own.

        Paper: section 3.3 and Table 2 of Kothari et al., "Trumpets" (2021).

        Returns:
            As `_bijective` does, and the "projection" of each image.
        """
        z, encoding = self._timed(flow.latents, x)
        back, decoding = self._timed(flow.generate, z)
        columns = {"relative_error": relative_error(back, x)}
        count = sum(image < (self.likelihoods or math.inf) for image in images)
        if count:
            columns["nll"] = -flow.log_prob(x[:count])
        if count and self.neumann_terms is not None:
            rows = zip(x[:count].split(1), images, strict=False)
            options = {"terms": self.neumann_terms}
            estimates = [flow.neumann_log_prob(row, seed=image, **options) for row, image in rows]
            columns["neumann_nll"] = -torch.cat(estimates)
            columns["neumann_bias"] = columns["neumann_nll"] - columns["nll"]
        times = {"encoding_time": encoding, "decoding_time": decoding}
        return {"z": z, "projection": back}, columns, times

    def derived(self, results: Sequence[Result]) -> Sequence[Mapping[str, float]]:
        """Distances of the samples of one flow from the test images."""
        found: dict[str, float] = {}
        for features in results[0].cell.trained.features:
            found |= features.distances(results)
        return [found for _ in results]

    def notes(self, table: Table) -> Sequence[str]:
        """What was published of flows that are no row here."""
        titles = {metric.name: metric.title for metric in reversed(self.metrics)}
        published = [
            f"Published, {labels_text(one.labels)}: "
            + ", ".join(f"{titles[name]} {value:g}" for name, value in one.metrics.items())
            for one in self.published
            if not any(one.matches(row.labels) for row in table.rows)
        ]
        absent = [f"No row: there are no weights in {one.weights} yet." for one in self.absent]
        measured = {name for row in table.rows for name, stat in row.stats.items() if stat.n}
        hints = [
            one.hint for one in self.features.values() if one.hint and one.name not in measured
        ]
        return [*published, *absent, *hints]

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
            figures = figures_of(row.labels, [result for result in mine if "x" in result.arrays])
            found |= {f"{figure}{suffix}": value for figure, value in figures.items()}
            if all("bits_per_dim" in result.metrics for result in mine):
                bits[f"{name}: {len(mine)} test images"] = [r.metrics["bits_per_dim"] for r in mine]
        if any(np.isfinite(values).any() for values in bits.values()):
            caption = "Likelihood of the test images."
            found["bits_per_dim"] = (histogram(bits, 40, "Bits per dimension"), caption)
        return found

    @cached_property
    def flows(self) -> dict[str, Flow]:
        """The trained flows by name, frozen and warm; see `Trained.load`."""
        flows = {
            trained.name: trained.load(self.device, f"evaluation.{option}")
            for option, trained in self.rows.items()
        }
        with torch.no_grad():
            for flow in flows.values():
                flow.latents(torch.zeros(1, *flow.image_shape, device=self.device))
        return flows

    @property
    def _counts(self) -> dict[str, int | None]:
        return {"neumann_terms": self.neumann_terms, "likelihoods": self.likelihoods}

    def _keep(
        self,
        cell: TrainedCell,
        images: Sequence[int],
        x: Tensor,
        found: Mapping[str, Tensor],
        arrays: ArrayStore,
    ) -> None:
        """What figures show of the first images, and features of all, with a sample for each."""
        flow, wanted = self.flows[cell.trained.name], cell.trained.features
        if not wanted and min(images) >= SHOWN:
            return
        with torch.no_grad():
            sets = {"test": x.to(self.device), "sample": self._samples(flow, images)}
            if wanted:
                sets["training"] = self._training_images(cell.trained, images).to(self.device)
        shown = {"x": sets["test"], "sample": sets["sample"]}
        shown |= {name: value for name, value in found.items() if name == "projection"}
        sets, shown = (
            {name: flow.to_unit_range(value) for name, value in some.items()}
            for some in (sets, shown)
        )
        kept: dict[str, Tensor] = {}
        for features in wanted:
            kept |= features.of(sets)
        for row, image in enumerate(images):
            mine = {**kept, "z": found["z"], **shown} if image < SHOWN else kept
            arrays.save(cell.key, image, {name: value[row] for name, value in mine.items()})

    def _samples(self, flow: Flow, images: Sequence[int]) -> Tensor:
        """A sample at temperature 1 for each image, by the image's own random numbers."""
        drawn = [
            torch.randn(flow.latent.shape, generator=torch.Generator().manual_seed(image))
            for image in images
        ]
        return flow.generate(torch.stack(drawn).to(flow.like))

    def _training_images(self, trained: Trained, images: Sequence[int]) -> Tensor:
        """The training images of these numbers, from the first again after the last."""
        dataset = trained.data.dataset("train")
        return dataset.__getitems__([(0, image % len(dataset)) for image in images])

    def _timed(self, call: Callable[[Tensor], Any], of: Tensor) -> tuple[Any, float]:
        """What a call gives, and its milliseconds per row."""
        _wait(self.device)
        start = time.perf_counter()
        found = call(of)
        _wait(self.device)
        return found, 1e3 * (time.perf_counter() - start) / len(of)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
