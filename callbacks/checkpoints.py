"""Checkpoints that a kill, a full disk or a NaN cannot spoil, and weight export."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

import flowprior
from flowprior.io import atomic_path
from flowprior.metrics import unusual_round_trips
from lightning_modules.flow_module import FlowModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside the target, syncs it and renames it.

    Whatever happens in between, the target is either the old checkpoint or the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to the local file `path`; raises OSError naming it if that fails."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as temporary:
                torch.save(checkpoint, temporary)
        except RuntimeError as error:  # torch's zip writer reports a failed write this way
            free = shutil.disk_usage(path.parent).free / 2**20
            raise OSError(f"cannot write {path}: {error} ({free:.1f} MiB free there)") from error


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, from which the same command resumes, and `best.ckpt`.

    The last one is written after every epoch with its validation, every `every_n_steps` steps
    within an epoch, and where a limit such as `max_steps` ends training within an epoch.

    Args:
        folder: where to write.
        every_n_steps: optimiser steps between two checkpoints within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoints.every_n_steps must be at least 1, got {every_n_steps}")
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self.every_n_steps = every_n_steps
        self.best_score = float("inf")

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Start a phase, before a checkpoint is restored."""
        self.best_score = float("inf")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save within the epoch; its last step is left to `on_train_epoch_end`."""
        ending = trainer.should_stop or trainer.global_step == trainer.max_steps
        if ending or trainer.global_step % self.every_n_steps == 0:
            self.save_within_epoch(trainer)

    def save_within_epoch(self, trainer: pl.Trainer) -> bool:
        """Save between two steps of an epoch; False if the epoch is about to be closed instead.

        The step is drawn in the curves first, so that a run which is killed here and resumed has no
        gap in them; Lightning draws it after this hook.
        """
        if trainer.fit_loop._should_accumulate() or _epoch_is_whole(trainer):
            return False
        trainer._logger_connector.update_train_step_metrics()
        _save(trainer, self.last)
        return True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Save after the epoch and its validation.

        An epoch that a limit has cut short was saved at its last step: here Lightning counts it as
        done, and a resumed run would leave out the rest of it.
        """
        if _epoch_is_whole(trainer):
            _save(trainer, self.last)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Save the best model so far."""
        score = _score(trainer, pl_module)
        if not trainer.sanity_checking and score < self.best_score:
            self.best_score = score
            _save(trainer, self.best)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must remember."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best_score = state_dict["best_score"]


class WeightExport(Callback):
    """Exports the best flow so far as `model.safetensors` + `config.json` (`flowprior.load`).

    A phase that ends before its first validation exports its last weights. With weight averaging
    the averaged weights are exported; this callback must come before it.

    Args:
        folder: where to write.
        card: what to say of the weights in `config.json`; phase, step, scores and hours of training
            are added, and for a bijective flow that takes no data the worst round trips on unusual
            images.
    """

    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.folder = folder
        self.card = card
        self._seconds, self._since = 0.0, time.monotonic()
        self.best_score = float("inf")
        self._trained = False

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Start a phase, before a checkpoint is restored."""
        self._seconds, self._since = self._training_seconds(), time.monotonic()
        self.best_score, self._trained = float("inf"), False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Export if the validation metric improved."""
        score = _score(trainer, pl_module)
        if not trainer.sanity_checking and score < self.best_score:
            self.best_score = score
            self._export(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Note that this fit has made steps."""
        self._trained = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Export what was never validated, by now with averaged weights in place."""
        if self._trained and self.best_score == float("inf"):
            self._export(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must remember."""
        return {"best_score": self.best_score, "seconds": self._training_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best_score = state_dict["best_score"]
        self._seconds, self._since = state_dict.get("seconds", 0.0), time.monotonic()

    def _training_seconds(self) -> float:
        """Of this run and of those that it resumes, up to their last checkpoints."""
        return self._seconds + time.monotonic() - self._since

    def _export(self, trainer: pl.Trainer, module: FlowModule) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        scores = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        progress = {
            "phase": module.phase,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "training_hours": round(self._training_seconds() / 3600, 3),
        }
        flow = module.flow
        tried = not (flow.injective or flow.conditional)
        trips = {"worst_round_trip": unusual_round_trips(flow)} if tried else {}
        flowprior.save(flow, self.folder, {**self.card, **progress, **scores, **trips})


def _save(trainer: pl.Trainer, path: Path) -> None:
    if not trainer.fast_dev_run:  # a trial of the code, perhaps in the folder of a real run
        trainer.save_checkpoint(path, weights_only=False)


def _score(trainer: pl.Trainer, module: FlowModule) -> float:
    return float(trainer.callback_metrics.get(f"val/{module.loss.monitor}", float("inf")))


def _epoch_is_whole(trainer: pl.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()
