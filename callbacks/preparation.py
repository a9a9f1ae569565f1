"""What a loss prepares of the images, before the first step of its phase."""

from collections.abc import Mapping
from contextlib import nullcontext

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from datamodules import ImageDataModule
from datamodules.prepared_rows import PreparedRows
from flowprior.losses import prepares
from flowprior.progress import SweepProgress
from lightning_modules.flow_module import FlowModule


class Preparation(Callback):
    """Has a loss that prepares its images do so once for each phase; must come before the progress.

    What it makes is kept in memory, never on disk, and is made again when a run resumes: from the
    same frozen weights and images, so that it cannot be out of date. Each process makes its share.
    A loss goes on preparing batch by batch, which one line says, if noise or flips change the
    images from epoch to epoch: keeping one version of each would train on fewer images.
    """

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Put what is to be prepared in the place of the images.

        Raises:
            ValueError: the loss does not say what its calls give of what it prepares.
        """
        data, loss = trainer.datamodule, pl_module.loss
        prepared, name = prepares(loss), type(loss).__name__
        pl_module.prepared = False
        if not isinstance(data, ImageDataModule):
            return
        data.prepared = {}
        if stage != "fit" or not prepared or trainer.fast_dev_run:
            return
        if data.dataset("train").changes:
            _say(
                f"{pl_module.phase}: {name} prepares the images in each epoch, "
                "because data.n_bits (null for none) or data.horizontal_flips change them"
            )
            return
        pl_module.prepared = True
        data.prepared = {
            split: PreparedRows(data.dataset(split), data.batch_size, f"{name}.prepare")
            for split in ("train", "val")
        }

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Prepare before the trial of the validation, which comes before the training."""
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Prepare all training and validation images, the latter in evaluation mode.

        Nothing is prepared if the loss makes None of the first batch of either.

        Raises:
            ValueError: the loss does not make rows of one shape, one for each image.
        """
        if not pl_module.prepared:
            return
        if any(part.rows is None for part in trainer.datamodule.prepared.values()):
            self._prepare(trainer, pl_module)

    @torch.no_grad()
    def _prepare(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        precision, strategy = trainer.precision_plugin, trainer.strategy

        def function(images: Tensor) -> Tensor:
            with precision.forward_context():
                x = precision.convert_input(images).to(pl_module.device)
                return pl_module.loss.prepare(pl_module.flow, x)

        def total(rows: Tensor) -> Tensor:
            return strategy.reduce(rows.to(pl_module.device), reduce_op="sum").cpu()

        parts = trainer.datamodule.prepared
        process = trainer.global_rank, trainer.world_size
        with _progress(sum(map(len, parts.values())), pl_module.phase) as progress:
            for split, part in parts.items():
                pl_module.flow.train(split == "train")
                advance = progress.advance if progress else _nothing
                pl_module.prepared = part.fill(function, total, process, advance)
                if not pl_module.prepared:
                    _forget(parts)
                    break
        pl_module.flow.train()

    def teardown(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Free the memory."""
        pl_module.prepared = False
        if isinstance(trainer.datamodule, ImageDataModule):
            trainer.datamodule.prepared = {}


def _forget(parts: Mapping[str, PreparedRows]) -> None:
    for part in parts.values():
        part.rows = None


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def _progress(total: int, phase: str) -> "SweepProgress | nullcontext[None]":
    """A bar on the first process."""
    if rank_zero_only.rank:
        return nullcontext()
    progress = SweepProgress(total, 0, Console())
    progress.start(f"{phase}: preparing")
    return progress


def _nothing(_: int) -> None: ...
