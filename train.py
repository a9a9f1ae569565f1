"""Train a flow: python train.py --config glow_layers_demo."""

import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    LatentTypicality,
    SampleGrid,
    StopOnNonFinite,
    StopOnSignal,
    TrainingProgress,
    TrainingStopped,
    WeightExport,
)
from datamodules import ImageDataModule
from datamodules.errors import DataError
from flowprior.command_line import (
    ROOT,
    UsageError,
    config_name,
    named_config_action,
    one_line,
    run_command,
)
from flowprior.io import atomic_write, named_error
from lightning_modules import FlowModule

CONFIGS = ROOT / "configs" / "train"
# Options that may change between a run and its resumption.
FREE_OPTIONS = {"data.init_args.num_workers", "data.init_args.pin_memory"}


class TrainCLI(LightningCLI):
    """Lightning's command line, with configs by bare name and a fixed set of callbacks."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser, whose --config also takes the name of a file in configs/train/."""
        parser = LightningArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=named_config_action(CONFIGS),
            help="name of a config in configs/train/, or the path of a YAML file",
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to neither model, data nor trainer."""
        parser.add_argument(
            "--output", type=Path | None, default=None, help="default: runs/<config name>"
        )
        parser.add_class_arguments(Checkpoints, "checkpoints", skip={"folder"}, instantiate=False)
        parser.add_class_arguments(SampleGrid, "samples", instantiate=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with the logger and callbacks of every run."""
        config, output = self.config_init, self.output
        checkpoints = Checkpoints(output / "checkpoints", **config.checkpoints)
        settings = yaml.safe_load(self.parser.dump(self.config))
        settings.pop("output", None)  # where this machine keeps its runs is nobody's business
        card = {"config": settings}
        before = [
            TrainingProgress(),
            SampleGrid(**config.samples),
            LatentTypicality(),
            WeightExport(output / "weights", card, checkpoints.monitor),
        ]
        after = [StopOnNonFinite(checkpoints), StopOnSignal(checkpoints), checkpoints]
        # The config's callbacks stand between: weight averaging swaps its weights out after they
        # were sampled and exported, and takes its step before a checkpoint is written.
        return super().instantiate_trainer(
            logger=TensorBoardLogger(output, "tensorboard", version=""),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            enable_model_summary=False,
            callbacks=[*before, *(config.trainer.callbacks or []), *after],
            **kwargs,
        )

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return self.config.output or Path("runs") / (config_name(sys.argv[1:]) or "unnamed")


def main() -> None:
    """Parse, check, train or resume."""
    _quieten()
    StrategyRegistry.register(
        "ddp",
        DDPStrategy,
        "DDP; buffers are equal on all processes already",
        override=True,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    fit(build())


def build() -> TrainCLI:
    """Parse the command line; build and check model, data and trainer, writing nothing.

    Raises:
        UsageError: for options that are wrong or do not fit together.
    """
    try:
        cli = TrainCLI(
            FlowModule,
            ImageDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_defaults={"num_sanity_val_steps": 0, "log_every_n_steps": 10},
            seed_everything_default=0,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UsageError(one_line(error)) from error
    _check(cli)
    return cli


def fit(cli: TrainCLI) -> None:
    """Train from where the run's folder is, or from the start."""
    output, trainer = cli.output, cli.trainer
    if not trainer.fast_dev_run and trainer.is_global_zero:
        _claim(output, cli)
    last = output / "checkpoints" / "last.ckpt"
    resumed = last.exists() and not trainer.fast_dev_run
    if resumed:
        step = _resumable_step(last, cli.model)
        trainer.logger._kwargs["purge_step"] = step  # curves after the checkpoint are drawn anew
    if trainer.is_global_zero:
        print(_summary(cli, f"resuming at step {step}" if resumed else "starting"), flush=True)
    try:
        trainer.fit(
            cli.model,
            datamodule=cli.datamodule,
            ckpt_path=last if resumed else None,
            weights_only=True if resumed else None,
        )
    except OSError as error:  # TensorBoard's writer does not say what it could not write
        raise named_error(error, output) if error.errno and not error.filename else error from None
    if trainer.is_global_zero and not trainer.fast_dev_run:
        finished = resumed and trainer.global_step == step
        state = "was finished already" if finished else "finished"
        print(f"{output.name} {state} at step {trainer.global_step}; weights: {output / 'weights'}")
        if finished:
            print(
                "To train longer raise --trainer.max_epochs; to start anew remove the folder or "
                "give another --output."
            )


def _summary(cli: TrainCLI, how: str) -> str:
    parameters = sum(p.numel() for p in cli.model.flow.parameters())
    shape = "x".join(map(str, cli.datamodule.image_shape))
    return (
        f"{cli.output.name}: {how}; {type(cli.model.flow).__name__} with {parameters / 1e6:.3g} M "
        f"parameters, {shape} images of {type(cli.datamodule).__name__}, global batch "
        f"{cli.datamodule.batch_size} on {cli.trainer.world_size} x "
        f"{cli.trainer.strategy.root_device.type}; curves: tensorboard --logdir {cli.output}"
    )


def _check(cli: TrainCLI) -> None:
    """Find mistakes before anything is written."""
    expected, given = cli.model.flow.image_shape, cli.datamodule.image_shape
    if expected != given:
        raise UsageError(
            f"model.flow models images of shape {expected} but data gives {given}: set "
            "model.flow.image_size, model.flow.in_channels and data.image_size to match"
        )
    if cli.model.flow.data_range != cli.datamodule.data_range:
        raise UsageError(
            f"model.flow.data_range is {cli.model.flow.data_range} but data.data_range is "
            f"{cli.datamodule.data_range}: they must be equal"
        )
    try:
        cli.datamodule.check(cli.trainer.world_size)
        cli.model.configure_optimizers()
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _claim(output: Path, cli: TrainCLI) -> None:
    """Keep the run's config in its folder, and refuse to continue with another one."""
    path, text = output / "config.yaml", cli.parser.dump(cli.config)
    if path.exists():
        before, now = (_flat(yaml.safe_load(t)) for t in (path.read_text(), text))
        for name in sorted(before.keys() | now.keys()):
            fixed = name.split(".")[0] in ("model", "data", "seed_everything")
            if fixed and name not in FREE_OPTIONS and before.get(name) != now.get(name):
                option = name.replace(".init_args.", ".")
                raise UsageError(
                    f"{output} was trained with {option}={before.get(name)}, this command says "
                    f"{now.get(name)}: give another --output, or remove the folder to start anew"
                )
    output.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _resumable_step(path: Path, model: FlowModule) -> int:
    """The optimiser step of a checkpoint that fits the model."""
    advice = "remove it, or put best.ckpt of the same folder in its place"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        found = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        step = checkpoint["global_step"]
    except Exception as error:  # whatever a damaged file makes torch raise
        raise UsageError(f"cannot resume from {path}: {one_line(error)}; {advice}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UsageError(
                f"{path} is of another architecture: {name} is {found.get(name)} there, "
                f"{expected.get(name)} in this model; give another --output"
            )
    return step


def _quieten() -> None:
    """Hide notices of the libraries that a user can do nothing about."""
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # TensorBoard's writing thread fails on a full disk; the main thread raises the same error.
    threading.excepthook = lambda args: (
        None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
    )
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(run_command(main, failures=(TrainingStopped, DataError)))
