"""Pictures of what a flow has learned, in TensorBoard."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from datamodules import ImageDataModule
from flowprior.figures import image_rows, qq_plot
from flowprior.metrics import largest_patch_correlation, relative_error, typicality
from lightning_modules.flow_module import FlowModule


def writer_of(trainer: pl.Trainer) -> SummaryWriter | None:
    """The TensorBoard writer of this process, if it has one."""
    if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
        return trainer.logger.experiment
    return None


class SampleGrid(Callback):
    """After each validation, a grid of samples at each of `temperatures`, from the same latents.

    With weight averaging the averaged weights are sampled; this callback must come before it.

    Args:
        images: number of images in a grid.
    """

    temperatures = (0.7, 1.0)

    def __init__(self, images: int = 32) -> None:
        if images < 1:
            raise ValueError(f"samples.images must be at least 1, got {images}")
        self.images = images

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Draw and log the grids on the first process."""
        writer = writer_of(trainer)
        if writer is None or trainer.sanity_checking:
            return
        for temperature in self.temperatures:
            generator = torch.Generator().manual_seed(0)
            x = pl_module.flow.sample(self.images, temperature, generator=generator)
            unit = pl_module.flow.to_unit_range(x).clamp(0, 1).nan_to_num()
            grid = make_grid(_enlarged(unit), padding=4, pad_value=1.0)
            writer.add_image(f"samples/temperature_{temperature:g}", grid, _step(trainer))


class OfValidationImages(Callback):
    """Looks at the first validation images after each validation, on the first process.

    Attributes:
        images: their number.
    """

    images = 64

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Forget the images of an earlier fit."""
        self._x: torch.Tensor | None = None

    def first_images(self, trainer: pl.Trainer, pl_module: FlowModule) -> torch.Tensor | None:
        """(B, C, H, W), B at most `images`; None where there is no data module to ask."""
        if self._x is None and isinstance(trainer.datamodule, ImageDataModule):
            dataset = trainer.datamodule.dataset("val")
            count = min(self.images, len(dataset))
            self._x = dataset.__getitems__([(0, index) for index in range(count)])
        return None if self._x is None else self._x.to(pl_module.flow.like)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Draw what there is to see."""
        writer = writer_of(trainer)
        if writer is None or trainer.sanity_checking:
            return
        x = self.first_images(trainer, pl_module)
        if x is not None:
            with torch.no_grad():
                self.draw(writer, pl_module, x, _step(trainer))

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, x: torch.Tensor, step: int
    ) -> None:
        """Log what `x` (B, C, H, W) shows."""
        raise NotImplementedError


class LatentTypicality(OfValidationImages):
    """After each validation, whether the latents of real images look like N(0, I).

    Logs the mean over images of each diagnostic of `flowprior.metrics.typicality`, the largest
    patch correlation beside what independent entries give, and a QQ plot of all latent entries.

    Attributes:
        patch_size: side of the patches, in pixels.
    """

    patch_size = 8

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, x: torch.Tensor, step: int
    ) -> None:
        """Log the diagnostics."""
        z = pl_module.flow.latents(x).float().cpu()
        for name, values in typicality(z, self.patch_size).items():
            writer.add_scalar(f"latent/{name}", values.mean(), step)
        largest, expected = largest_patch_correlation(z, self.patch_size)
        writer.add_scalar("latent/largest_patch_correlation", largest, step)
        writer.add_scalar("latent/independent_patch_correlation", expected, step)
        if z.isfinite().any():
            figure = qq_plot({"latents of validation images": z.numpy()})
            writer.add_figure("latent/qq_plot", figure, step)


class Projections(OfValidationImages):
    """After each validation of an injective flow, images beside their projections.

    Logs the mean of ‖x − project(x)‖/‖x‖ in every phase, and a figure of the first images.

    Attributes:
        shown: number of images in the figure.
    """

    shown = 8

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, x: torch.Tensor, step: int
    ) -> None:
        """Log error and figure, if the flow has projections."""
        flow = pl_module.flow
        if not hasattr(flow, "project"):
            return
        projected = flow.project(x)
        writer.add_scalar("projections/relative_error", relative_error(projected, x).mean(), step)
        first = {"images": x[: self.shown], "projections": projected[: self.shown]}
        rows = {name: flow.to_unit_range(value).cpu().float() for name, value in first.items()}
        rows["|error|"] = (rows["projections"] - rows["images"]).abs()
        writer.add_figure("projections/first_images", image_rows(rows, label="value"), step)


def _step(trainer: pl.Trainer) -> int:
    """The step just made, at which Lightning draws the validation metrics.

    A run that resumes after N steps hides what is drawn at N and later.
    """
    return max(trainer.global_step - 1, 0)


def _enlarged(images: torch.Tensor, side: int = 96) -> torch.Tensor:
    """Repeat the pixels of small images, which a browser would blur."""
    factor = max(1, side // images.shape[-1])
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
