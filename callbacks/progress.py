"""One progress bar for the whole training run."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class TrainingProgress(ProgressBar):
    """Epoch, bits per dimension, rate and time left of the whole run.

    On a terminal a bar and one line after each epoch; elsewhere the lines alone. Logs
    `train/step_seconds` and `train/images_per_second` (over all processes).
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._started = 0.0
        self._first_step = 0
        self._step_started = 0.0
        self._images = 0
        self._enabled = True

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Inverse of `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar from where the run starts or resumes."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        if not self._enabled:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} steps {task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        total = _total_steps(trainer)
        self._task = self._bar.add_task(
            "training", total=total, completed=trainer.global_step, note=""
        )
        self._bar.start()

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the step's clock."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the step's time and rate, and advance the bar."""
        seconds = time.perf_counter() - self._step_started
        images = len(batch) * trainer.world_size
        pl_module.log("train/step_seconds", seconds)
        pl_module.log("train/images_per_second", images / seconds)
        self._images += images
        if self._bar is None or self._bar.disable:
            return
        self._bar.update(self._task, completed=trainer.global_step, note=self._note(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what the wait is for."""
        if self._bar is not None and not trainer.sanity_checking:
            self._bar.update(self._task, description="validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print one line of the epoch's figures."""
        if self._bar is None:
            return
        self._bar.update(self._task, description="training")
        scores = {
            name: trainer.callback_metrics[name].item()
            for name in ("train/bits_per_dim", "val/bits_per_dim")
            if name in trainer.callback_metrics
        }
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self._console.print(
            f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}  {text}  "
            f"{self._note(trainer)}",
            highlight=False,
            soft_wrap=True,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self, trainer: pl.Trainer) -> str:
        elapsed = time.monotonic() - self._started
        done, total = trainer.global_step - self._first_step, _total_steps(trainer)
        note = f"{self._images / elapsed:.3g} images/s"
        if total is not None and done:
            left = elapsed / done * (total - trainer.global_step)
            note += f", {timedelta(seconds=round(left))} left"
        return note


def _total_steps(trainer: pl.Trainer) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 <= steps < float("inf") else None
