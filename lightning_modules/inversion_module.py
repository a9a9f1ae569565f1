"""Recovery of a batch of images from their data."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from flowprior.inversion import MAP, Run, Solver, batch_invariant, make_problem
from flowprior.inversion.wrappers import free_latents
from flowprior.physics import Noise
from flowprior.priors import Prior


class InversionModule(pl.LightningModule):
    """A solver over latents under a Trainer: the latent v (B, n) is its only trainable parameter.

    A training step is one iteration, in which every image goes its own way; an epoch is
    `iterations` of them. The callback `Gaussianization` puts z = h(v) in place of z = v. The curves
    are means over the images that are finite.

    Args:
        prior: it is frozen here.
        physics: deepinv `Physics`, or a function, of images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        sigma: standard deviation of their noise.
        noise: or a noise model.
        solver: a solver over latents; `MAP()` by default.
        iterations: their number.
        start: images (B, C, H, W) in [0, 1] to start from.
        latents: latents v (B, n) to start from; by default one draw of N(0, I) from `seed`.
        seed: of the start.

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
        seed: int = 0,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.automatic_optimization = False
        self.prior = prior.eval().requires_grad_(False)
        self.physics = physics
        self.register_buffer("y", y)
        self.noise = {"sigma": sigma, "noise": noise}
        self.solver = solver or MAP()
        self.iterations = iterations
        self.seed = seed
        problem = make_problem(
            prior, physics, y, **self.noise, start=start, latents=latents, seed=seed
        )
        self.solver.check(prior)
        v = free_latents(self.solver, problem) if latents is None else latents
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
        problem = make_problem(
            self.prior, self.physics, self.y, **self.noise, latents=self.v, seed=self.seed
        )
        with batch_invariant():
            self.run = self.solver.begin(problem)
            if self._saved is not None:
                self.run.load_state_dict(self._saved)
        return self.run.optimizer

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
        """Keep the run, and which solver it is of."""
        checkpoint["solver"] = repr(self.solver)
        checkpoint["run"] = None if self.run is None else self.run.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the checkpoint's run; ValueError if it is that of another solver."""
        if checkpoint["solver"] != repr(self.solver):
            raise ValueError(
                f"the checkpoint was made with {checkpoint['solver']}, this module has "
                f"{self.solver!r}: give it the same solver and Gaussianization callback"
            )
        self._saved = checkpoint["run"]

    @property
    def images(self) -> Tensor:
        """The images at the latents as they are, (B, C, H, W), in [0, 1] up to overshoot."""
        if self.run is None:
            raise RuntimeError("there are no images before Trainer.fit has started")
        return self.run.x
