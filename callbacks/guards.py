"""Ways for a run to stop with everything kept: Ctrl-C, termination, non-finite training."""

import signal
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from callbacks.checkpoints import Checkpoints
from lightning_modules.flow_module import FlowModule


class TrainingStopped(Exception):
    """Training ended early; the message says why and what was kept."""

    status = 1


class Interrupted(TrainingStopped):
    """SIGINT or SIGTERM; the run can be resumed."""

    status = 130


class StopOnSignal(Callback):
    """On Ctrl-C or SIGTERM, finish the step on all processes, save `last.ckpt` and stop.

    A second signal stops at once.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals while training runs."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over SIGTERM again, for which Lightning has a handler of its own by now.

        That one exchanges something between the processes at once, wherever each of them is: they
        could wait for each other forever.
        """
        for number in self._previous if self.received is None else ():
            signal.signal(number, self._receive)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop between two steps of an epoch."""
        if self._agreed(trainer) and self.checkpoints.save_within_epoch(trainer):
            raise self._interrupted(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after an epoch."""
        if self._agreed(trainer):
            self.checkpoints.on_train_epoch_end(trainer, pl_module)
            raise self._interrupted(trainer)

    def _receive(self, number: int, _: Any) -> None:
        for known, previous in self._previous.items():
            signal.signal(known, previous)
        self.received = signal.Signals(number).name
        rank_zero_info(f"\n{self.received}: finishing the step, then saving; again to stop at once")

    def _agreed(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self.received is not None
        decision = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        return bool(decision)

    def _interrupted(self, trainer: pl.Trainer) -> Interrupted:
        return Interrupted(
            f"stopped by {self.received or 'a signal to another process'} after step "
            f"{trainer.global_step}; saved in {self.checkpoints.last}, the same command continues"
        )


class StopOnNonFinite(Callback):
    """Stops when a gradient is no longer finite, keeping the last good checkpoint.

    Gradient norms are added up on the device, and the sum is looked at only where the host waits
    for the device anyway: at steps that are drawn, and before anything is written to disk.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._norms: torch.Tensor | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Forget an earlier phase."""
        self._norms = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: FlowModule, *_: Any) -> None:
        """Add this step's gradient norm; look at the sum at steps that are drawn."""
        norm = pl_module.gradient_norm
        if norm is not None:
            self._norms = norm if self._norms is None else self._norms + norm
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Look before the weights are validated and exported."""
        self._check(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: FlowModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look before a checkpoint is written."""
        self._check(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Look before the last weights are exported."""
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if self._norms is None or torch.isfinite(self._norms):
            return
        kept = self.checkpoints.last if self.checkpoints.last.exists() else "none written yet"
        raise TrainingStopped(
            f"the gradient norm became {self._norms.item()} by step {trainer.global_step} "
            f"(training has diverged or an image is not finite); last good checkpoint: {kept}; "
            "try a smaller learning rate (--model.optimizer.lr)"
        )
