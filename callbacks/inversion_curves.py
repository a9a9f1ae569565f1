"""What TensorBoard shows of an inversion."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.gaussianization import check_inversion_module
from callbacks.samples import writer_of
from flowprior.distribution_figures import qq_plot
from flowprior.inversion import Recording
from flowprior.inversion.boards import margins, progress_grid, write_margin
from lightning_modules import InversionModule


class InversionCurves(Callback):
    """Curves, pictures and the typicality of the latents of an `InversionModule`.

    At each iteration: mean, and mean ± standard deviation over the finite images, of loss, misfit,
    log prior and, if the truth is known, PSNR, SSIM and LPIPS. At iterations 0, 1, 2, 5, 10, ...
    and the last: pictures, and the mean of each diagnostic of `flowprior.metrics.typicality`. At
    the end: a QQ plot of all latents.

    Args:
        truth: images (B, C, H, W) in [0, 1], if they are known.
        images: number of images shown.

    Attributes:
        recording: the curves and pictures, of all images.
        latents: z (B, ...) at the end.
    """

    def __init__(self, truth: Tensor | None = None, images: int = 8) -> None:
        if images < 1:
            raise ValueError(f"images must be at least 1, got {images}")
        self.truth = truth
        self.images = images
        self.recording = Recording()
        self.latents: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check what it is used with."""
        check_inversion_module(self, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start; a resumed run goes on with what was recorded before."""
        noted = self.recording.state_dict() if trainer.global_step else {}
        truth = None if self.truth is None else self.truth.to(pl_module.v.device)
        self.recording = Recording(truth, self.images, pl_module.iterations)
        self.recording.load_state_dict(noted)
        if trainer.global_step == 0:
            self._note(writer_of(trainer), pl_module, 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """Record an iteration."""
        self._note(writer_of(trainer), pl_module, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show where it ended."""
        self.latents = pl_module.run.z
        writer = writer_of(trainer)
        if writer is not None and self.recording.iterations:
            writer.add_custom_scalars(margins(self.recording.latest))
            if self.latents.isfinite().any():
                figure = qq_plot({"latents": self.latents})
                writer.add_figure("inversion/latent_qq", figure, self.recording.iterations[-1])

    def state_dict(self) -> dict[str, Any]:
        """What was recorded."""
        return self.recording.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.recording.load_state_dict(state_dict)

    def _note(self, writer: SummaryWriter | None, module: InversionModule, iteration: int) -> None:
        self.recording(iteration, module.run)
        if writer is None:
            return
        for name, values in self.recording.latest.items():
            write_margin(writer, name, values[module.run.finite], iteration)
        if iteration in self.recording.snapshots:
            self._show(writer, module, iteration)

    def _show(self, writer: SummaryWriter, module: InversionModule, iteration: int) -> None:
        """Write pictures and typicality at an iteration of which they were kept."""
        pictures = self.recording.snapshots
        shown = slice(self.images)
        rows = {"observation": module.y[shown], "start": pictures[min(pictures)]}
        if self.truth is not None:
            rows = {"truth": self.truth[shown], **rows}
        figure = progress_grid({**rows, "current": pictures[iteration]})
        writer.add_figure("inversion/images", figure, iteration)
        for name, values in self.recording.typicality.get(iteration, {}).items():
            writer.add_scalar(f"latent/{name}", values[module.run.finite].mean(), iteration)
