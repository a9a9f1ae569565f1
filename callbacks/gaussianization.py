"""Gaussianization layers for an inversion."""

import inspect
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from flowprior.gaussianization import Gaussianization as GaussianizationLayers
from flowprior.gaussianization.gaussianization import Rotation
from lightning_modules import InversionModule

Preset = Literal["robust", "paper"]


class Gaussianization(Callback):
    """Puts z = h(v) in place of z = v in an `InversionModule`; without it the latent is free.

    The module keeps the layers, `reparameterization`, after the fit.

    Args:
        preset: where those of the others come from that are not given; all of them are arguments
            of `flowprior.gaussianization.Gaussianization`.
    """

    def __init__(
        self,
        preset: Preset = "robust",
        patch_size: int | None = None,
        whiten: bool | None = None,
        rotation: Rotation | None = None,
        ica_iterations: int | None = None,
        yeo_johnson: bool | None = None,
        lambert_w: bool | None = None,
        standardize: bool | None = None,
        temperature: float | None = None,
        passes: int | None = None,
        eta: float | None = None,
        damping: float | None = None,
    ) -> None:
        names = inspect.signature(GaussianizationLayers).parameters
        given = {k: v for k, v in locals().items() if k in names and v is not None}
        if preset not in ("robust", "paper"):
            raise ValueError(f'preset must be "robust" or "paper", got {preset!r}')
        settings = getattr(GaussianizationLayers, preset)().settings
        self.layers = GaussianizationLayers(**{**settings, **given})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the layers in place."""
        if not isinstance(pl_module, InversionModule):
            raise ValueError(
                f"Gaussianization belongs to an InversionModule, not to {type(pl_module).__name__}"
            )
        pl_module.reparameterization = self.layers
