"""Maximum-likelihood training of a flow."""

from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse.typing import PositiveFloat
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from flowprior.flows import Flow
from flowprior.metrics import bits_per_dim


class FlowModule(pl.LightningModule):
    """Trains `flow` by maximum likelihood; the loss is the mean bits per dimension of a batch.

    Batches are images (B, C, H, W), already dequantised to the flow's data range. Gradients are
    clipped by value, then by their global norm.

    Args:
        flow: the density model.
        optimizer: optimiser of the parameters; the paper's is Adam, 1e-4, betas (0.9, 0.99).
        gradient_clip_value: largest absolute value of a gradient entry.
        gradient_clip_norm: largest norm of the whole gradient.
    """

    def __init__(
        self,
        flow: Flow,
        optimizer: OptimizerCallable = torch.optim.Adam,
        gradient_clip_value: PositiveFloat = 5.0,
        gradient_clip_norm: PositiveFloat = 100.0,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.optimizer = optimizer
        self.gradient_clip_value = gradient_clip_value
        self.gradient_clip_norm = gradient_clip_norm
        self.gradient_norm: Tensor | None = None
        # Lightning's own mean over processes is off where they hold different numbers of images.
        self.validation = torch.nn.ModuleDict({"nll": MeanMetric(), "bits_per_dim": MeanMetric()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser over the flow's parameters."""
        return self.optimizer(self.flow.parameters())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean bits per dimension of the batch."""
        nll, bits = self._losses(batch)
        self.log("train/nll", nll.detach().mean(), sync_dist=True)
        self.log("train/bits_per_dim", bits.detach().mean(), sync_dist=True)
        return bits.mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the mean over all images, however they are shared out."""
        nll, bits = self._losses(batch)
        for name, values in (("nll", nll), ("bits_per_dim", bits)):
            self.validation[name].update(values)
            self.log(f"val/{name}", self.validation[name], on_epoch=True)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any
    ) -> None:
        """Clip by value, then by norm, and log the norm before any clipping."""
        parameters = [p for p in self.flow.parameters() if p.grad is not None]
        self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self.log("train/gradient_norm", self.gradient_norm)
        torch.nn.utils.clip_grad_value_(parameters, self.gradient_clip_value)
        torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip_norm)

    def _losses(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = self.flow.log_prob(batch)
        n_bits = getattr(self.trainer.datamodule, "n_bits", None)
        bits = bits_per_dim(log_prob, batch[0].numel(), n_bits, self.flow.data_range)
        return -log_prob, bits
