"""Train a flow: python train.py --config glow_layers_demo."""

import sys

if __name__ == "__main__":
    from flowprior.extras import need_pipeline

    need_pipeline()
    from flowprior.command_line import stop_quietly

    stop_quietly()

import json
import logging
import threading
import warnings
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from callbacks import (
    AtomicCheckpointIO,
    Checkpoints,
    CurveLogger,
    LatentTypicality,
    LinkedDDP,
    Preparation,
    Projections,
    RestoreLimit,
    SameStart,
    SampleGrid,
    Start,
    StopOnNonFinite,
    StopOnSignal,
    TrainingProgress,
    TrainingStopped,
    WeightExport,
    close_phase,
    start_from,
)
from callbacks.processes import death, leave, started_by_first
from datamodules import ImageDataModule
from datamodules.errors import DataError
from flowprior.command_line import (
    ROOT,
    UsageError,
    add_imports_option,
    named_config_action,
    one_line,
    output_folder,
    run_command,
)
from flowprior.identity import code_digest, identity
from flowprior.io import atomic_write, named_error, remove_temporaries, sole_writer
from flowprior.losses import prepares
from flowprior.settings import changes, differences
from flowprior.weights import check_rebuilds
from lightning_modules import FlowModule, Phase

CONFIGS = ROOT / "configs" / "train"
INPUTS = "inputs.json"
# Options that may not change between a run and its resumption, but for those that may.
FIXED_OPTIONS = ("model", "data", "phases", "seed_everything")
FREE_OPTIONS = ("data.init_args.num_workers",)


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
        add_imports_option(parser)
        parser.add_argument(
            "--output", type=Path | None, default=None, help="default: runs/<config name>"
        )
        parser.add_argument(
            "--phases",
            type=list[Phase] | None,
            default=None,
            help="train in phases, instead of with model.loss for trainer.max_epochs",
        )
        parser.add_class_arguments(Checkpoints, "checkpoints", skip={"folder"}, instantiate=False)
        parser.add_class_arguments(SampleGrid, "samples", instantiate=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer with the logger and callbacks of every run."""
        config, output = self.config_init, self.output
        checkpoints = Checkpoints(output / "checkpoints", **config.checkpoints)
        settings = yaml.safe_load(self.parser.dump(self.config))
        settings.pop("output", None)  # where this machine keeps its runs is nobody's business
        before = [
            RestoreLimit(),
            SameStart(),
            Preparation(),
            TrainingProgress(),
            SampleGrid(**config.samples),
            Projections(),
            LatentTypicality(),
            WeightExport(output / "weights", {"config": settings}),
        ]
        after = [StopOnNonFinite(checkpoints), StopOnSignal(checkpoints), checkpoints]
        # The config's callbacks stand between: weight averaging swaps its weights out after they
        # were sampled and exported, and takes its step before a checkpoint is written.
        return super().instantiate_trainer(
            logger=CurveLogger(output, "tensorboard", version=""),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            enable_model_summary=False,
            callbacks=[*before, *(config.trainer.callbacks or []), *after],
            **kwargs,
        )

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return output_folder(self.config)

    @cached_property
    def phases(self) -> list[tuple[FlowModule, int]]:
        """The module of each phase, and the number of epochs after which it ends (-1: never)."""
        given: list[Phase] | None = self.config_init.phases
        if given is None:
            return [(self.model, self.trainer.max_epochs)]
        ends = accumulate(phase.epochs for phase in given)
        return [(phase.module(self.model), end) for phase, end in zip(given, ends, strict=True)]


def main() -> None:
    """Parse, check, train or resume."""
    _quieten()
    StrategyRegistry.register(
        "ddp",
        LinkedDDP,
        "DDP; buffers are equal on all processes already",
        override=True,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    try:
        fit(build())
    except TrainingStopped as stopped:
        if started_by_first():
            leave(stopped.status)
        raise


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
    except (MemoryError, RuntimeError) as error:  # torch's, if a flow is too large
        what = "" if "SLURM" in str(error) else "model.flow cannot be built: "
        raise UsageError(f"{what}{one_line(error)}") from error
    _check(cli)
    return cli


def fit(cli: TrainCLI) -> None:
    """Train from where the run's folder is, or from the start."""
    output, trainer = cli.output, cli.trainer
    start = Start() if trainer.fast_dev_run else _check_resumable(cli)
    if trainer.fast_dev_run or not trainer.is_global_zero:
        _run(cli, start)
        return
    trainer.logger._kwargs["purge_step"] = start.step  # curves from there on are drawn anew
    output.mkdir(parents=True, exist_ok=True)
    with sole_writer(output):
        remove_temporaries(output)
        atomic_write(output / "config.yaml", cli.parser.dump(cli.config))
        atomic_write(output / INPUTS, json.dumps(_inputs(cli), indent=1))
        _run(cli, start)
    already = start.checkpoint is not None and trainer.global_step == start.step
    print(
        f"{output.name} {'was finished already' if already else 'finished'} at step "
        f"{trainer.global_step}; weights: {output / 'weights'}"
    )
    if already:
        print(
            "To train longer raise --trainer.max_epochs, or the epochs of the last phase; to start "
            "anew remove the folder or give another --output."
        )


def _run(cli: TrainCLI, start: Start) -> None:
    if cli.trainer.is_global_zero:
        how = f"resuming at step {start.step}" if start.checkpoint else "starting"
        print(_summary(cli, how), flush=True)
    try:
        _fit_phases(cli, start)
    except (RuntimeError, ConnectionError) as error:
        if what := death(error, cli.trainer):
            raise TrainingStopped(what) from error
        raise
    except OSError as error:  # TensorBoard's writer does not say what it could not write
        unnamed = error.errno and not error.filename
        raise named_error(error, cli.output) if unnamed else error from None


def _fit_phases(cli: TrainCLI, start: Start) -> None:
    """Run one `Trainer.fit` per phase, from that of the checkpoint on.

    Steps, epochs and the order of the data are counted over all phases.
    """
    trainer, data = cli.trainer, cli.datamodule
    names = [module.phase for module, _ in cli.phases]
    first = names.index(start.phase) if start.phase in names else 0
    for number, (module, end) in enumerate(cli.phases[first:], first):
        checkpoint = start.checkpoint if number == first else None
        trainer.fit_loop.max_epochs = end
        if trainer.fast_dev_run:  # one step of each phase
            trainer.fit_loop.epoch_loop.max_steps = trainer.fit_loop.max_epochs = number + 1
        resume = {"ckpt_path": checkpoint, "weights_only": True} if checkpoint else {}
        trainer.fit(module, datamodule=data, **resume)
        if checkpoint and trainer.global_step == start.step:
            close_phase(trainer, module, checkpoint)
        limited = trainer.should_stop or trainer.global_step == trainer.max_steps
        if limited and not trainer.fast_dev_run:
            return
        data.load_state_dict(data.state_dict())


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
    if not isinstance(cli.trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise UsageError(
            f"trainer.strategy is {type(cli.trainer.strategy).__name__}: expected auto or ddp, as "
            "sharded flows lose what the first batch sets (docs/training.md, Several GPUs)"
        )
    _check_phases(cli)
    _check_conditions(cli)
    nodes = getattr(cli.trainer.strategy, "cluster_environment", None)
    try:
        if nodes is not None:
            nodes.validate_settings(cli.trainer.num_devices, cli.trainer.num_nodes)
        cli.datamodule.check(cli.trainer.world_size)
        check_rebuilds(cli.model.flow)
        for module, _ in cli.phases:
            prepares(module.loss)
            module.trained_parameters()
            module.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error


def _check_conditions(cli: TrainCLI) -> None:
    """Flow, data and losses must agree on whether there are data of the images, and which."""
    expected = cli.model.flow.condition_shape
    given = getattr(cli.datamodule, "condition_shape", None)
    if expected != given:
        names = {None: "none"}
        raise UsageError(
            f"model.flow takes conditions of shape {names.get(expected, expected)} but data gives "
            f"{names.get(given, given)}: set model.flow.condition_shape to match, or take pairs "
            "such as those of datamodules.SimulatedPairs"
        )
    for module, _ in cli.phases:
        if module.loss.pairs != (given is not None):
            takes = "takes pairs" if module.loss.pairs else "takes images without conditions"
            raise UsageError(
                f"loss {type(module.loss).__name__} {takes}, but data gives "
                f"{'images' if given is None else 'pairs'}: for pairs use "
                "flowprior.losses.ConditionalLikelihood or JointLikelihood"
            )


def _check_phases(cli: TrainCLI) -> None:
    if cli.config.phases is None:
        return
    names = [module.phase for module, _ in cli.phases]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"phases: expected at least one, with different names, got {names}")
    for option, value in (
        ("trainer.max_epochs", cli.config.trainer.max_epochs),
        ("model.loss", cli.config.model.loss),
    ):
        if value is not None:
            raise UsageError(
                f"{option} is {value}, but phases have their own: give one or the other"
            )


def _check_resumable(cli: TrainCLI) -> Start:
    """Where the run's folder goes on.

    Raises:
        UsageError: it holds a run with other settings, or a checkpoint that does not fit.
    """
    path, last = cli.output / "config.yaml", cli.output / "checkpoints" / "last.ckpt"
    if path.exists():
        now = yaml.safe_load(cli.parser.dump(cli.config))
        _check_unchanged(cli.output, yaml.safe_load(path.read_text()), now)
    if (cli.output / INPUTS).exists():
        _check_inputs(cli.output, json.loads((cli.output / INPUTS).read_text()), _inputs(cli))
    return start_from(last, cli.model) if last.exists() else Start()


def _check_unchanged(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    last_phase = len(now.get("phases") or []) - 1
    free = {*FREE_OPTIONS, f"phases.{last_phase}.epochs"}
    for name, old, new in differences(before, now):
        if name.split(".")[0] in FIXED_OPTIONS and name not in free:
            option = name.replace(".init_args.", ".")
            raise UsageError(
                f"{output} was trained with {option}={old}, this command says {new}: give another "
                "--output, or remove the folder to start anew"
            )


def _inputs(cli: TrainCLI) -> dict[str, Any]:
    """Digests of the images, and of a user's own code, that the run depends on."""
    own = [cli.datamodule, cli.model.flow, *(module.loss for module, _ in cli.phases)]
    code = {type(part).__name__: code_digest(type(part)) for part in own}
    images = {split: cli.datamodule.fingerprint(split) for split in ("train", "val")}
    return identity({"images": images, "code": code})


def _check_inputs(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = changes(before, now)
    if changed:
        raise UsageError(
            f"{output} was trained with other images or code ({'; '.join(changed[:3])}): give "
            "another --output, or remove the folder to start anew"
        )


def _quieten() -> None:
    """Hide notices of the libraries that a user can do nothing about."""
    for message in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",  # curves of epochs are drawn all the same
    ):
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
