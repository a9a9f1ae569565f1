"""Gaussianization layers for an inversion."""

from dataclasses import fields, replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from flowprior.gaussianization import Gaussianization as Layers
from flowprior.gaussianization import Reparameterization
from flowprior.inversion import Solver
from lightning_modules import InversionModule


class Gaussianization(Callback):
    """Puts z = h(v) in place of z = v in an `InversionModule`; without it the latent is free.

    Args:
        layers: h, `Gaussianization.robust()` of flowprior.gaussianization by default; or one for
            each named part of the latent.
    """

    def __init__(
        self, layers: Reparameterization | dict[str, Reparameterization] | None = None
    ) -> None:
        self.layers = layers or Layers.robust()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the layers in place."""
        if not isinstance(pl_module, InversionModule):
            raise ValueError(
                f"Gaussianization belongs to an InversionModule, not to {type(pl_module).__name__}"
            )
        pl_module.solver = with_layers(pl_module.solver, self.layers)
        pl_module.solver.check(pl_module.prior)


def with_layers(solver: Solver, layers: Any) -> Solver:
    """The same solver, or the one inside of its wrappers, with these layers.

    Raises:
        ValueError: the solver has no latents to lay them on.
    """
    names = {field.name for field in fields(solver)}
    if "reparameterization" in names:
        return replace(solver, reparameterization=layers)
    if "solver" in names:
        return replace(solver, solver=with_layers(solver.solver, layers))
    raise ValueError(f"{type(solver).__name__} takes no Gaussianization layers")
