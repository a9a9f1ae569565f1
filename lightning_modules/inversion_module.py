"""Recovery of a batch of images from their data."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from flowprior.flows import Flow
from flowprior.gaussianization import Identity, Reparameterization
from flowprior.inversion.batch_invariant import batch_invariant
from flowprior.inversion.invert import checked_start, starting_latents
from flowprior.inversion.objective import Objective
from flowprior.inversion.problem import InverseProblem
from flowprior.inversion.solvers import CURVES, Method, Solver, make_solver


class InversionModule(pl.LightningModule):
    """Minimises the objective over latents v (B, ...), its only trainable parameter.

    A training step is an iteration of the solver, in which every image goes its own way; an epoch
    is `iterations` of them. The callback `Gaussianization` puts z = h(v) in place of z = v. The
    curves are means over the images that are finite.

    Args:
        prior: the flow; it is frozen here.
        physics: deepinv `Physics`, or a function, of images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        objective: `Objective()` by default.
        iterations: of the solver.
        method: "lbfgs" or "adam".
        learning_rate: of Adam.
        start: latents v to start from; by default one draw of N(0, I) from `seed` for all images.
        seed: of the start.
    """

    def __init__(
        self,
        prior: Flow,
        physics: Any,
        y: Tensor,
        objective: Objective | None = None,
        iterations: int = 100,
        method: Method = "lbfgs",
        learning_rate: float = 0.05,
        start: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.automatic_optimization = False
        self.prior = prior.eval().requires_grad_(False)
        self.physics = physics
        self.register_buffer("y", y)
        self.objective = objective
        self.iterations = iterations
        self.method = method
        self.learning_rate = learning_rate
        self.reparameterization: Reparameterization = Identity()
        start = starting_latents(prior, len(y), seed) if start is None else start
        self.v = torch.nn.Parameter(checked_start(prior, len(y), start).clone())
        self.solver: Solver | None = None

    def train_dataloader(self) -> range:
        """One item for each iteration; the data are with the module."""
        return range(self.iterations)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Set up the problem, on the device by now, and its solver."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"an InversionModule runs in one process, got {self.trainer.world_size}: averaged "
                "gradients would mix the images; share them out with evaluate.py --processes"
            )
        problem = InverseProblem(
            self.prior, self.physics, self.y, self.reparameterization, self.objective
        )
        with batch_invariant():
            self.solver = make_solver(problem, self.v, self.method, self.learning_rate)
        return self.solver.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make one iteration of all images that are not done.

        Lightning's own optimizer wrapper would hide which rows a closure is for; it is told of the
        step, so that `max_steps`, `global_step` and checkpoints count iterations.
        """
        optimizer = self.optimizers()
        optimizer._on_before_step()
        if self.solver.active.any():
            with batch_invariant():
                self.solver.step()
        optimizer._on_after_step()
        means = self.solver.values[:, self.solver.finite].mean(1)
        for name, mean in zip(CURVES, means, strict=True):
            self.log(f"inversion/{name}", mean)
        self.log("inversion/active_rows", self.solver.active.float().sum())

    @property
    def images(self) -> Tensor:
        """The images at the latents as they are, (B, C, H, W), in [0, 1] up to overshoot."""
        if self.solver is None:
            raise RuntimeError("there are no images before Trainer.fit has started")
        return self.solver.x
