"""Going on from a checkpoint as if nothing had happened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks.guards import TrainingStopped
from flowprior.command_line import UsageError, one_line
from lightning_modules.flow_module import FlowModule


@dataclass(frozen=True)
class Start:
    """Where training starts: at a checkpoint, or by default at the beginning."""

    checkpoint: Path | None = None
    step: int = 0
    phase: str | None = None


def start_from(path: Path, model: FlowModule) -> Start:
    """Where a checkpoint goes on; raises UsageError if it is damaged or does not fit the model."""
    advice = "remove it, or put best.ckpt of the same folder in its place"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        absent = {"global_step", "loops", "optimizer_states", "callbacks"} - checkpoint.keys()
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UsageError(f"cannot resume from {path}: {one_line(error)}; {advice}") from error
    if absent or not checkpoint["optimizer_states"]:
        raise UsageError(
            f"cannot resume from {path}: it has weights but not the state of training "
            f"({', '.join(sorted(absent)) or 'optimizer_states'}); {advice}"
        )
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UsageError(
                f"{path} is of another architecture: {name} is {found.get(name)} there, "
                f"{expected.get(name)} in this model; give another --output"
            )
    return Start(path, checkpoint["global_step"], checkpoint.get("phase"))


def close_phase(trainer: pl.Trainer, module: FlowModule, checkpoint: Path) -> None:
    """Leave a phase that was complete in its checkpoint as an uninterrupted fit leaves it.

    The weights in the checkpoint are the averaged ones, if there are any.
    """
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    progress = trainer.fit_loop.epoch_progress
    progress.total.completed = progress.total.processed
    trainer.fit_loop.on_iteration_done()  # the next phase does not resume


class CurveLogger(TensorBoardLogger):
    """TensorBoard's logger, which draws a step once although `Checkpoints` may draw it early."""

    _latest: tuple[dict[str, float], int | None] | None = None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Draw `metrics` at `step`, unless that was the latest call already."""
        if (metrics, step) != self._latest:
            self._latest = (dict(metrics), step)
            super().log_metrics(metrics, step)


class SameStart(Callback):
    """Stops a run whose processes start at different steps: they do not see the same files."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Compare.

        Raises:
            TrainingStopped: names the steps.
        """
        step = torch.tensor(trainer.global_step, device=pl_module.device)
        steps = trainer.strategy.all_gather(step).flatten().tolist()
        if len(set(steps)) > 1:
            raise TrainingStopped(
                f"processes start at the steps {', '.join(map(str, steps))}: all nodes must see "
                "the same --output"
            )


class RestoreLimit(Callback):
    """Takes `max_steps` away while a checkpoint is restored; must come before other callbacks.

    With it, Lightning continues an epoch that was complete, and so loses the next one.
    """

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Note the limit."""
        self._limit = trainer.max_steps

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: FlowModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the limit away."""
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Put it back."""
        trainer.fit_loop.epoch_loop.max_steps = self._limit

    def teardown(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Put it back where nothing was left to train."""
        trainer.fit_loop.epoch_loop.max_steps = self._limit
