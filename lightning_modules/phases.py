"""Training in several phases, each with a loss of its own."""

from dataclasses import dataclass

from jsonargparse.typing import PositiveInt
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable

from flowprior.losses import Loss
from lightning_modules.flow_module import FlowModule


@dataclass
class Phase:
    """One phase of a training run.

    Args:
        name: in checkpoints and on the screen.
        loss: what is minimised, and which parameters it trains.
        epochs: passes over the training images.
        optimizer: optimiser of this phase; `model.optimizer` by default.
        lr_scheduler: schedule of this phase; `model.lr_scheduler` by default.
    """

    name: str
    loss: Loss
    epochs: PositiveInt
    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | None = None

    def module(self, model: FlowModule) -> FlowModule:
        """The module that trains the flow of `model` in this phase."""
        module = FlowModule(
            model.flow,
            self.optimizer or model.optimizer,
            self.lr_scheduler or model.lr_scheduler,
            self.loss,
            model.gradient_clip_value,
            model.gradient_clip_norm,
        )
        module.phase = self.name
        return module
