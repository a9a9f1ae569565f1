"""Ways to recover images from data, as an evaluation compares them."""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from callbacks import Gaussianization, InversionCurves
from evaluation.arrays import ArrayStore
from evaluation.cells import Label
from evaluation.fingerprints import digest
from flowprior.flows import Flow
from flowprior.inversion import (
    Objective,
    Recording,
    invert_with_total_variation,
    project_to_latents,
)
from flowprior.inversion.solvers import Method as SolverName
from lightning_modules import InversionModule


class Keep:
    """Tensors of these images by name, looked up or else computed and kept in an `ArrayStore`.

    What does not depend on the data need not be computed for each noise level.

    Args:
        arrays: where they are kept.
        images: their numbers.
        device: where the tensors are wanted.
        prior: what tells it from others.
    """

    def __init__(self, arrays: ArrayStore, images: Sequence[int], device: str, prior: str) -> None:
        self.arrays, self.images, self.device, self.prior = arrays, images, device, prior

    def __call__(self, name: str, of: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Tensor (B, ...) that follows from the name, the prior and the rows `of` (B, ...)."""
        groups = [f"kept-{digest(name, self.prior, row)[:16]}" for row in of]
        places = list(zip(groups, self.images, strict=True))
        if not all(self.arrays.has(*place) for place in places):
            for place, row in zip(places, compute(), strict=True):
                self.arrays.save(*place, {"row": row})
        rows = [torch.from_numpy(self.arrays.load(*place)["row"]) for place in places]
        return torch.stack(rows).to(self.device)


@dataclass(frozen=True)
class Task:
    """Data of some images, and what a method may know.

    Args:
        prior: the flow, on the device to compute on.
        physics: the operator that the method believes in.
        y: data (B, ...).
        truth: images (B, C, H, W) in [0, 1], for curves only; None if unknown.
        start: images (B, C, H, W) to start from; None for a draw of the latents.
        iterations: at most so many.
        seed: of the draw.
        pictures: how many images to keep pictures of.
        keep: for what other tasks with these images need too.
    """

    prior: Flow
    physics: Any
    y: Tensor
    truth: Tensor | None
    start: Tensor | None
    iterations: int
    seed: int
    pictures: int
    keep: Keep


@dataclass(frozen=True)
class Outcome:
    """Images x (B, C, H, W), latents z (B, ...) if there are any, and which rows are finite."""

    x: Tensor
    z: Tensor | None
    finite: Tensor
    recording: Recording


class Method(ABC):
    """A way to recover images. `labels` tell it from others in the table."""

    labels: Mapping[str, Label]

    @abstractmethod
    def solve(self, task: Task) -> Outcome:
        """Recover the images of a task, each by itself."""

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All that decides its results, JSON-like."""


class FlowInversion(Method):
    """`InversionModule` under a Trainer; z = v unless `callbacks` has a `Gaussianization`.

    Args:
        labels: of its rows in the table.
        objective: see `flowprior.inversion.Objective`.
        callbacks: Lightning callbacks for the inversion.
        solver: "lbfgs" or "adam".
        learning_rate: of Adam.
        projection_iterations: of the search for the latents of a starting image, at most.
    """

    def __init__(
        self,
        labels: dict[str, Label],
        objective: Objective | None = None,
        callbacks: list[Callback] | None = None,
        solver: SolverName = "lbfgs",
        learning_rate: float = 0.05,
        projection_iterations: int = 100,
    ) -> None:
        self.labels = labels
        self.objective = objective or Objective()
        self.callbacks = callbacks or []
        self.solver = solver
        self.learning_rate = learning_rate
        self.projection_iterations = projection_iterations

    def settings(self) -> Mapping[str, Any]:
        """Objective, layers and solver."""
        layers = self._layers()
        return {
            "objective": asdict(self.objective),
            "layers": layers.settings if layers else None,
            "solver": [self.solver, self.learning_rate, self.projection_iterations],
        }

    def solve(self, task: Task) -> Outcome:
        """Project the start to latents, then invert."""
        module = InversionModule(
            task.prior,
            task.physics,
            task.y,
            self.objective,
            iterations=task.iterations,
            method=self.solver,
            learning_rate=self.learning_rate,
            start=None if task.start is None else self._start(task),
            seed=task.seed,
        )
        curves = InversionCurves(task.truth, task.pictures)
        fit(module, [*self.callbacks, curves], task.y.device)
        solver = module.solver
        return Outcome(solver.x, curves.latents, solver.finite, curves.recording)

    def _layers(self) -> Any:
        found = [c.layers for c in self.callbacks if isinstance(c, Gaussianization)]
        return found[0] if found else None

    def _start(self, task: Task) -> Tensor:
        layers = self._layers()
        weight = self.objective.weight(task.start[0].numel()) / self.objective.data_scale**2
        beta = weight / 2 if self.objective.prior == "map" else 0.0  # eq. 39 has no 1/2

        def project() -> Tensor:
            return project_to_latents(
                task.prior,
                task.start,
                reparameterization=layers,
                beta=beta,
                iterations=self.projection_iterations,
                seed=task.seed,
            )

        key = [layers and layers.settings, beta, self.projection_iterations, task.seed]
        return task.keep(repr(key), task.start, project)


class TotalVariation(Method):
    """Total variation and the box [0, 1], without a flow.

    Args:
        labels: of its rows in the table.
        weight: λ of the total variation, in the unit of the misfit.
        data_scale: as in `Objective`.
    """

    def __init__(self, labels: dict[str, Label], weight: float, data_scale: float = 1.0) -> None:
        self.labels = labels
        self.weight = weight
        self.data_scale = data_scale

    def settings(self) -> Mapping[str, Any]:
        """Weight and scale."""
        return {"total_variation": self.weight, "data_scale": self.data_scale}

    def solve(self, task: Task) -> Outcome:
        """Minimise from the starting images, or from grey ones."""
        recording = Recording(task.truth, task.pictures, last=task.iterations)
        shape = (len(task.y), *task.prior.image_shape)
        start = task.y.new_full(shape, 0.5) if task.start is None else task.start
        found = invert_with_total_variation(
            task.physics,
            task.y,
            start,
            weight=self.weight,
            data_scale=self.data_scale,
            iterations=task.iterations,
            on_iteration=recording,
        )
        return Outcome(found.x, None, found.finite, recording)


def fit(module: InversionModule, callbacks: Sequence[Callback], device: torch.device) -> None:
    """Run an `InversionModule` on one device, silently and writing nothing."""
    on_gpu = device.type == "cuda"
    with _quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=[device.index or 0] if on_gpu else 1,
            plugins=[LightningEnvironment()],  # whatever launched this process
            max_epochs=1,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
    # Lightning leaves everything on the CPU: the prior and the operator too, which others need.
    module.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Lightning says at each of many short runs."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
