"""Pictures of what a flow has learned, in TensorBoard."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from flowprior.figures import qq_plot
from flowprior.metrics import largest_patch_correlation, typicality
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


class LatentTypicality(Callback):
    """After each validation, whether the latents of real images look like N(0, I).

    Logs the mean over images of each diagnostic of `flowprior.metrics.typicality`, the largest
    patch correlation beside what independent entries give, and a QQ plot of all latent entries.

    Attributes:
        images: number of validation images to encode, those of the first batches.
        patch_size: side of the patches, in pixels.
    """

    images = 64
    patch_size = 8

    def __init__(self) -> None:
        self._latents: list[torch.Tensor] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Forget the latents of the last validation."""
        self._latents = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: FlowModule,
        outputs: None,
        batch: torch.Tensor,
        *_: int,
    ) -> None:
        """Encode the first images."""
        missing = self.images - sum(map(len, self._latents))
        if missing > 0 and not trainer.sanity_checking and trainer.is_global_zero:
            with torch.no_grad():
                self._latents.append(pl_module.flow.latents(batch[:missing]).float().cpu())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: FlowModule) -> None:
        """Log the diagnostics on the first process."""
        writer = writer_of(trainer)
        if writer is None or not self._latents:
            return
        z, step = torch.cat(self._latents), _step(trainer)
        for name, values in typicality(z, self.patch_size).items():
            writer.add_scalar(f"latent/{name}", values.mean(), step)
        largest, expected = largest_patch_correlation(z, self.patch_size)
        writer.add_scalar("latent/largest_patch_correlation", largest, step)
        writer.add_scalar("latent/independent_patch_correlation", expected, step)
        if z.isfinite().any():
            figure = qq_plot({"latents of validation images": z.numpy()})
            writer.add_figure("latent/qq_plot", figure, step)


def _step(trainer: pl.Trainer) -> int:
    """The step just made, at which Lightning draws the validation metrics.

    A run that resumes after N steps hides what is drawn at N and later.
    """
    return max(trainer.global_step - 1, 0)


def _enlarged(images: torch.Tensor, side: int = 96) -> torch.Tensor:
    """Repeat the pixels of small images, which a browser would blur."""
    factor = max(1, side // images.shape[-1])
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
