"""Inversion of a batch of images under a Trainer."""

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from flowprior.checks import check_integer
from flowprior.identity import identity
from flowprior.inversion import MAP, Problem, Run, Solver, batch_invariant, make_problem
from flowprior.inversion.solving import check_solver, check_together
from flowprior.physics import Noise
from flowprior.priors import Prior
from flowprior.settings import changes


class InversionModule(pl.LightningModule):
    """A solver over latents under a Trainer: the latent v (B, n) is its only trainable parameter.

    It does what `invert` does. A training step is one iteration of all images, each with its own
    line search and end; an epoch is `iterations` of them. The callback `Gaussianization` replaces
    z = v by z = h(v). Logged curves are means over the finite images.

    Args:
        prior: frozen by this module.
        physics: deepinv `Physics`, or a function, of images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        sigma: standard deviation of their noise: short for `noise=Gaussian(sigma)`.
        noise: noise model of the data.
        solver: a solver over latents; `MAP()` by default.
        iterations: number of iterations in an epoch.
        start: images (B, C, H, W) in [0, 1] to start from; their latents are found when the fit
            begins.
        latents: latents v (B, n) to start from, (B·count, n) for `Restarts`; by default one draw of
            N(0, I) from `seed`.
        condition: one row per image, for a conditional prior; by default what its `conditioning`
            makes of y.
        seed: of everything random.

    Raises:
        ValueError: names the argument that is wrong or does not fit.
    """

    def __init__(
        self,
        prior: Prior,
        physics: Any,
        y: Tensor,
        *,
        sigma: float | None = None,
        noise: Noise | None = None,
        solver: Solver | None = None,
        iterations: int = 100,
        start: Tensor | None = None,
        latents: Tensor | None = None,
        condition: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.solver = MAP() if solver is None else solver
        check_integer("iterations", iterations, least=1)
        _check_latent_solver(self.solver)
        self.automatic_optimization = False
        self.iterations = iterations
        self.physics, self.seed = physics, seed
        self.noise = {"sigma": sigma, "noise": noise}
        options = {"start": start, "latents": latents, "condition": condition, "seed": seed}
        problem = make_problem(_frozen(prior), physics, y, **self.noise, **options)
        check_together(self.solver, problem)
        self.prior = prior
        self.register_buffer("y", problem.y)
        self.register_buffer("start", problem.start, persistent=False)
        self.register_buffer("condition", problem.condition, persistent=False)
        self._projects = latents is None and start is not None
        v = self.solver.start(replace(problem, start=None)) if latents is None else latents
        self.v = torch.nn.Parameter(v.detach().clone().to(prior.like))
        self.run: Run | None = None
        self._saved: dict[str, Any] | None = None

    def train_dataloader(self) -> range:
        """One item for each iteration; the data are with the module."""
        return range(self.iterations)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Begin the run, on the device by now."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"an InversionModule runs in one process, got {self.trainer.world_size}: averaged "
                "gradients would mix the images; evaluate.py --processes gives each its own images"
            )
        problem = self._problem()
        with batch_invariant():
            if self._projects and self._saved is None:
                self.v.data.copy_(self.solver.start(problem))
                self._projects = False
            self.run = self.solver.begin(replace(problem, latents=self.v))
            if self._saved is not None:
                # Lightning reads a checkpoint onto the CPU.
                self.run.load_state_dict(move_data_to_device(self._saved, self.device))
        own = getattr(self.run, "optimizer", None)  # one that does nothing still counts the steps
        return own or torch.optim.SGD([self.v], 0.0)

    def _problem(self) -> Problem:
        return make_problem(
            self.prior,
            self.physics,
            self.y,
            **self.noise,
            start=self.start,
            condition=self.condition,
            seed=self.seed,
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make one iteration of all images that are not done.

        Lightning's own optimizer wrapper would hide which rows a closure is for; it is told of the
        step, so that `max_steps`, `global_step` and checkpoints count iterations.
        """
        optimizer = self.optimizers()
        optimizer._on_before_step()
        if self.run.active.any():
            with batch_invariant():
                self.run.step()
        optimizer._on_after_step()
        for name, values in self.run.values.items():
            self.log(f"inversion/{name}", values[self.run.finite].mean())
        self.log("inversion/active_rows", self.run.active.float().sum())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run, and which solver it is of."""
        checkpoint["solver"] = identity(self.solver)
        checkpoint["run"] = None if self.run is None else self.run.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume the checkpoint's run; ValueError if it is that of another solver."""
        if "solver" not in checkpoint:
            raise ValueError("the checkpoint is of no InversionModule: it has no solver")
        changed = changes(checkpoint["solver"], identity(self.solver))
        if changed:
            raise ValueError(
                f"solver: the checkpoint was made with another one ({'; '.join(changed[:5])}): "
                "give the module the same solver and Gaussianization callback"
            )
        self._saved = checkpoint["run"]

    @property
    def images(self) -> Tensor:
        """The present images (B, C, H, W), in [0, 1] up to overshoot."""
        if self.run is None:
            raise RuntimeError("there are no images before Trainer.fit has started")
        return self.run.x


def _frozen(prior: Any) -> Any:
    return prior.eval().requires_grad_(False) if isinstance(prior, Prior) else prior


def _check_latent_solver(solver: object) -> None:
    check_solver(solver)
    if not hasattr(solver, "start"):
        raise ValueError(
            f"solver {type(solver).__name__} has no `start(problem)` that gives latents (B, n), "
            "which a solver over latents needs here; for one over images use invert"
        )
