"""One progress bar for a training phase."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from lightning_modules.flow_module import FlowModule


class TrainingProgress(ProgressBar):
    """Steps, loss, rate and time left of a training phase.

    On a terminal a bar and one line after each epoch; elsewhere the lines alone. Logs
    `train/step_seconds` and `train/images_per_second` (over all processes).
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._step_started = 0.0
        self._images = 0
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Inverse of `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Show the bar from where the run starts or resumes."""
        if not self._enabled:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        steps = trainer.estimated_stepping_batches
        self._task = self._bar.add_task(
            pl_module.phase,
            total=steps if 0 <= steps < float("inf") else None,
            completed=trainer.global_step,
            note="",
        )
        self._bar.start()

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the step's clock."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: FlowModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step's time and rate, and advance the bar."""
        seconds = time.perf_counter() - self._step_started
        images = batch if isinstance(batch, Tensor) else batch[0]
        self._images = len(images) * trainer.world_size
        pl_module.log("train/step_seconds", seconds)
        pl_module.log("train/images_per_second", self._images / seconds)
        if self._bar is None:
            return
        self._bar.update(self._task, completed=trainer.global_step)
        # Reading the loss waits for the device: only at steps where it is drawn anyway.
        if not self._bar.disable and trainer.global_step % trainer.log_every_n_steps == 0:
            self._bar.update(self._task, note=_score(trainer, f"train/{pl_module.loss.monitor}"))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Say what the wait is for."""
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.update(self._task, description="validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Print one line of the epoch's figures."""
        if self._bar is None:
            return
        self._bar.update(self._task, description=pl_module.phase)
        task = self._bar.tasks[self._task]
        rate = f"{task.speed * self._images:.3g} images/s" if task.speed else ""
        left = TimeRemainingColumn().render(task).plain
        line = (
            f"{pl_module.phase}: epoch {trainer.current_epoch + 1}",
            f"step {trainer.global_step}",
            *(_score(trainer, f"{split}/{pl_module.loss.monitor}") for split in ("train", "val")),
            rate,
            f"{left} left" if left else "",
        )
        self._console.print("  ".join(filter(None, line)), highlight=False, soft_wrap=True)

    def teardown(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _score(trainer: pl.Trainer, name: str) -> str:
    value = trainer.callback_metrics.get(name)
    return "" if value is None else f"{name} {value.item():.4f}"
