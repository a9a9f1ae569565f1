"""Pictures of what a flow has learned, in TensorBoard."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from datamodules import ImageDataModule
from flowprior.distribution_figures import qq_plot
from flowprior.figures import grey_range, image_rows
from flowprior.metrics import largest_patch_correlation, relative_error, typicality
from lightning_modules.flow_module import FlowModule


def writer_of(trainer: pl.Trainer) -> SummaryWriter | None:
    """The TensorBoard writer of this process, if it has one."""
    if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
        return trainer.logger.experiment
    return None


class OfValidationImages(Callback):
    """Looks at the first validation images after each validation, on the first process.

    Attributes:
        images: their number.
        needs_images: whether nothing is drawn without any.
    """

    images = 64
    needs_images = True
    _batch: tuple[torch.Tensor, ...] = ()

    def setup(self, trainer: pl.Trainer, pl_module: FlowModule, stage: str) -> None:
        """Forget the images of an earlier fit."""
        self._batch = ()

    def first_images(self, trainer: pl.Trainer, pl_module: FlowModule) -> tuple[torch.Tensor, ...]:
        """Images (B, C, H, W), B at most `images`, and data of them for a conditional flow.

        Nothing where there is no data module to ask.
        """
        if not self._batch and isinstance(trainer.datamodule, ImageDataModule):
            dataset = trainer.datamodule.dataset("val")
            count = min(self.images, len(dataset))
            batch = dataset.__getitems__([(0, index) for index in range(count)])
            self._batch = (batch,) if isinstance(batch, torch.Tensor) else tuple(batch)
        return tuple(part.to(pl_module.flow.like) for part in self._batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Draw what there is to see."""
        writer = writer_of(trainer)
        if writer is None or trainer.sanity_checking:
            return
        batch = self.first_images(trainer, pl_module)
        if batch or not self.needs_images:
            with torch.no_grad():
                self.draw(writer, pl_module, _step(trainer), *batch)

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, step: int, *batch: torch.Tensor
    ) -> None:
        """Log what images (B, C, H, W), and data of them for a conditional flow, show."""
        raise NotImplementedError


class SampleGrid(OfValidationImages):
    """After each validation, a grid of samples at each of `temperatures`, from the same latents.

    Those of a conditional flow are given the data of the first validation images, which stand
    beside them as `samples/truth`. Where validation images use less than a third of the greys, so
    do the grids (`flowprior.figures.grey_range`). With weight averaging the averaged weights are
    sampled; this callback must come before it.

    Args:
        images: number of images in a grid.
    """

    temperatures = (0.7, 1.0)
    needs_images = False

    def __init__(self, images: int = 32) -> None:
        if images < 1:
            raise ValueError(f"samples.images must be at least 1, got {images}")
        self.images = images

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, step: int, *batch: torch.Tensor
    ) -> None:
        """Draw and log the grids."""
        flow = pl_module.flow
        if flow.image_shape[0] not in (1, 3) or (flow.conditional and not batch):
            return
        low, high = grey_range(flow.to_unit_range(batch[0])) if batch else (0.0, 1.0)
        given, shown = {}, {}
        if flow.conditional:  # again from the first image where there are too few
            rows = torch.arange(self.images) % len(batch[0])
            given, shown = {"condition": batch[1][rows]}, {"truth": batch[0][rows]}
        for temperature in self.temperatures:
            generator = torch.Generator().manual_seed(0)
            x = flow.sample(self.images, temperature, generator=generator, **given)
            shown[f"temperature_{temperature:g}"] = x
        for name, x in shown.items():
            unit = ((flow.to_unit_range(x) - low) / (high - low)).clamp(0, 1).nan_to_num()
            grid = make_grid(_enlarged(unit), padding=4, pad_value=1.0)
            writer.add_image(f"samples/{name}", grid, step)


class LatentTypicality(OfValidationImages):
    """After each validation, whether the latents of real images look like N(0, I).

    Logs the mean over images of each diagnostic of `flowprior.metrics.typicality`, the largest
    patch correlation beside what independent entries give, and a QQ plot of all latent entries.

    Attributes:
        patch_size: side of the patches, in pixels.
    """

    patch_size = 8

    def draw(
        self, writer: SummaryWriter, pl_module: FlowModule, step: int, *batch: torch.Tensor
    ) -> None:
        """Log the diagnostics."""
        z = pl_module.flow.latents(*batch).float().cpu()
        for name, values in typicality(z, self.patch_size).items():
            writer.add_scalar(f"latent/{name}", values.mean(), step)
        if z.ndim == 4:  # a flow of one's own may have a latent that is no image
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
        self, writer: SummaryWriter, pl_module: FlowModule, step: int, *batch: torch.Tensor
    ) -> None:
        """Log error and figure, if the flow has projections."""
        flow, x = pl_module.flow, batch[0]
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
