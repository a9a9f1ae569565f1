"""Training of a flow."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jsonargparse.typing import PositiveFloat
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from flowprior.flows import Flow
from flowprior.losses import Loss, MaximumLikelihood
from flowprior.schedules import WarmupCosine

_TRAINING, _VALIDATION = 0, 1
"""What random numbers are for."""


class FlowModule(pl.LightningModule):
    """Trains `flow` by minimising the mean of `loss` over the images of a batch.

    Batches are images (B, C, H, W), already dequantised to the flow's data range, or pairs of these
    and data (B, ...) of them, or what the loss has `prepared`. Gradients are clipped by value, then
    by their global norm. Parameters that the loss does not train are frozen in `setup`, before DDP
    wraps the module: ranks would drift apart if that changed during a fit.

    Random numbers that loss and flow draw from torch's own generators depend on (seed, step, batch,
    process) in training and on (seed, batch, process) in validation, where seed is that of torch at
    the start of the fit. So a resumed training draws what it would have drawn, processes draw
    different numbers, and every validation draws the same.

    Args:
        flow: the density model.
        optimizer: optimiser of the parameters; the paper's is Adam, 1e-4, betas (0.9, 0.99).
        lr_scheduler: schedule of the learning rate, stepped after each optimiser step; none by
            default.
        loss: what is minimised; `MaximumLikelihood()` by default.
        gradient_clip_value: largest absolute value of a gradient entry.
        gradient_clip_norm: largest norm of the whole gradient.

    Attributes:
        phase: name of the training phase, kept in checkpoints.
        prepared: whether batches are what `loss.prepare` makes of images (`callbacks.Preparation`).
        gradient_norm: norm of the latest gradient before any clipping, ().
    """

    def __init__(
        self,
        flow: Flow,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        loss: Loss | None = None,
        gradient_clip_value: PositiveFloat = 5.0,
        gradient_clip_norm: PositiveFloat = 100.0,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loss = loss or MaximumLikelihood()
        self.gradient_clip_value = gradient_clip_value
        self.gradient_clip_norm = gradient_clip_norm
        self.phase = "training"
        self.prepared = False
        self.gradient_norm: Tensor | None = None
        self.seed = torch.initial_seed()
        # Lightning's own mean over processes is off where they hold different numbers of images.
        self.validation = torch.nn.ModuleDict()

    def setup(self, stage: str) -> None:
        """Freeze what the loss does not train, and drop the gradients of an earlier phase."""
        self.seed = torch.initial_seed()
        if stage == "fit":
            self.flow.train()  # a loaded flow is in evaluation mode
        self.loss.n_bits = getattr(self.trainer.datamodule, "n_bits", None)
        self.loss.flat_noise = getattr(self.trainer.datamodule, "flat_noise", False)
        own = getattr(self.trainer.datamodule, "conditioning", None)
        self.flow.conditioning = own or self.flow.conditioning
        trained = {id(parameter) for parameter in self.trained_parameters()}
        for parameter in self.flow.parameters():
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the loss trains, in the flow's order.

        Raises:
            ValueError: if there are none.
        """
        trained = {id(parameter) for parameter in self.loss.trains(self.flow)}
        found = [p for p in self.flow.parameters() if id(p) in trained]
        if not found:
            raise ValueError(f"{type(self.loss).__name__}.trains gave no parameter of the flow")
        return found

    def configure_optimizers(self) -> torch.optim.Optimizer | dict[str, Any]:
        """Build the optimiser of the trained parameters, and its schedule.

        Raises:
            ValueError: if the rate is not a function of the step, or nothing is trained.
        """
        optimizer = self.optimizer(self.trained_parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError(
                "model.lr_scheduler: expected a function of the step, such as "
                "flowprior.schedules.WarmupCosine, got ReduceLROnPlateau"
            )
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            scheduler.total_steps = self._phase_steps()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the phase."""
        checkpoint["phase"] = self.phase

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the precision of the training first: Lightning restores the weights before that."""
        if self._trainer is not None:
            self.trainer.precision_plugin.convert_module(self)

    def training_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch."""
        with self._seeded(_TRAINING, self.global_step, batch_idx):
            values = self._values(batch)
        for name, value in values.items():
            self.log(f"train/{name}", value.detach().mean(), sync_dist=True)
        return next(iter(values.values())).mean()

    def validation_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> None:
        """Log the mean over all images, however many each process has."""
        with self._seeded(_VALIDATION, batch_idx):
            values = self._values(batch)
        for name in values.keys() - self.validation.keys():
            self.validation[name] = MeanMetric().to(self.device)
        for name, value in values.items():
            self.validation[name].update(value)
            self.log(f"val/{name}", self.validation[name], on_epoch=True)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any
    ) -> None:
        """Clip by value, then by norm, and log the norm before any clipping."""
        parameters = [p for p in self.flow.parameters() if p.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self.log("train/gradient_norm", self.gradient_norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        torch.nn.utils.clip_grad_value_(parameters, self.gradient_clip_value)
        torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip_norm)

    @contextmanager
    def _seeded(self, *stage: int) -> Iterator[None]:
        """Random numbers of (seed, stage, process); those outside go on as if there were none."""
        seed = step_seed(self.seed, self.global_rank, *stage)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # torch.manual_seed, which visits every kind of device, takes many times as long.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield

    def _values(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        parts = (batch,) if isinstance(batch, Tensor) else tuple(batch)
        count = len(parts[0])
        values = (self.loss.of_prepared if self.prepared else self.loss)(self.flow, *parts)
        name = type(self.loss).__name__
        if self.loss.monitor not in values:
            raise ValueError(
                f"{name}: monitor {self.loss.monitor!r} must be one of its values {list(values)}"
            )
        for key, value in values.items():
            if value.shape != (count,):
                raise ValueError(
                    f"{name}: {key} must be one number for each image, shape ({count},), "
                    f"got {tuple(value.shape)}"
                )
        return values

    def _phase_steps(self) -> int | None:
        """Optimiser steps of this phase; None if it has no end, or there is no trainer yet."""
        if self._trainer is None:
            return None
        trainer = self.trainer
        if trainer.max_epochs == -1:
            return trainer.max_steps if trainer.max_steps != -1 else None
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches / trainer.accumulate_grad_batches
        return math.ceil(batches) * (trainer.max_epochs - trainer.current_epoch)


def step_seed(seed: int, rank: int, *stage: int) -> int:
    """Seed of the random numbers of one process in one step.

    Args:
        seed: of the whole run, ≥ 0.
        rank: of the process.
        stage: what the numbers are for, and when.
    """
    # 32 bits, which are all that torch's CPU generator looks at.
    return int(np.random.SeedSequence((seed, rank, *stage)).generate_state(1)[0])
