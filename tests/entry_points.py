"""Run train.py and evaluate.py as a user does, on something tiny."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import train
from flowprior.command_line import run_command

ROOT = Path(__file__).resolve().parent.parent

# Names of TensorBoard's files end in this number, and they are read in the order of their names:
# with fewer digits first, runs of this process within one second could change places.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)

TINY = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Glow
    init_args:
      {in_channels: 1, image_size: 16, levels: 2, steps: 2, hidden_channels: 8, coupling: affine}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.LayerModels
  init_args: {image_size: 16, num_train: 64, num_val: 9, num_test: 8, batch_size: 8}
trainer: {accelerator: cpu, max_epochs: 3, log_every_n_steps: 1}
checkpoints: {every_n_steps: 3}
samples: {images: 2}
"""


class ParameterDigest(Callback):
    """Notes a digest of the parameters after each step, one file per process."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_) -> None:
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        path = Path(trainer.logger.save_dir) / f"digests-{trainer.global_rank}"
        with path.open("a") as file:
            file.write(f"{digest.hexdigest()}\n")


class Slowly(Callback):
    """Makes steps so slow that a run does not end before a test has stopped it."""

    def on_train_batch_end(self, *_) -> None:
        time.sleep(0.2)


SLOWLY = "--trainer.callbacks+=tests.entry_points.Slowly"


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start(folder: Path, script: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        command(script, *arguments),
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def finish(folder: Path, script: str, *arguments: str) -> str:
    process = start(folder, script, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def train_here(folder: Path, *arguments: str, status: int = 0) -> None:
    """Run train.py in this process, with the config tiny.yaml of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train.py", "--config", "tiny.yaml", *arguments])
        assert run_command(train.main, (train.TrainingStopped, train.DataError)) == status


def scalars(run: Path, name: str) -> dict[int, float]:
    """Step to value of a curve, as TensorBoard shows it; every step must be drawn once."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars(name)]
    assert steps == sorted(set(steps)), steps
    return {event.step: event.value for event in events.Scalars(name)}


def with_weights(config: Path, weights: Path) -> list[str]:
    """Options that put these weights in the place of those which a config names by their folder."""
    arguments = yaml.safe_load(config.read_text())["evaluation"]["init_args"]
    given = arguments.get("priors", {})
    priors = [f"priors.{name}" for name, one in given.items() if isinstance(one, str)]
    alone = "prior" if "prior" in arguments else "weights"
    return [f"--evaluation.{name}={weights}" for name in priors or [alone]]
