"""Gaussianization layers for an inversion."""

from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from flowprior.gaussianization import Gaussianization as GaussianizationLayers
from lightning_modules import InversionModule

Preset = Literal["robust", "paper"]


class Gaussianization(Callback):
    """Puts z = h(v) in place of z = v in an `InversionModule`; without it the latent is free.

    Args:
        preset: where the settings come from.
        **settings: of `flowprior.gaussianization.Gaussianization`, in place of the preset's.
    """

    def __init__(self, preset: Preset = "robust", **settings: Any) -> None:
        if preset not in ("robust", "paper"):
            raise ValueError(f'preset must be "robust" or "paper", got {preset!r}')
        chosen = getattr(GaussianizationLayers, preset)().settings
        self.layers = GaussianizationLayers(**{**chosen, **settings})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the layers in place."""
        if not isinstance(pl_module, InversionModule):
            raise ValueError(
                f"Gaussianization belongs to an InversionModule, not to {type(pl_module).__name__}"
            )
        pl_module.reparameterization = self.layers
