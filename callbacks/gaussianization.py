"""Gaussianization layers for an inversion."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from flowprior.gaussianization import Gaussianization as Layers
from flowprior.gaussianization import Reparameterization
from flowprior.inversion import Solver
from lightning_modules import InversionModule


class Gaussianization(Callback):
    """Replaces z = v by z = h(v) in an `InversionModule`.

    Args:
        layers: h, or one for each named part of the latent; by default
            `flowprior.gaussianization.Gaussianization.robust()`.
    """

    def __init__(
        self, layers: Reparameterization | dict[str, Reparameterization] | None = None
    ) -> None:
        self.layers = Layers.robust() if layers is None else layers

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module's solver the layers."""
        check_inversion_module(self, pl_module)
        pl_module.solver = with_layers(pl_module.solver, self.layers)
        pl_module.solver.check(pl_module.prior)


def check_inversion_module(callback: Callback, module: pl.LightningModule) -> None:
    """Raise ValueError unless the callback is used with an `InversionModule`."""
    if not isinstance(module, InversionModule):
        raise ValueError(
            f"{type(callback).__name__} needs an InversionModule, got {type(module).__name__}"
        )


def with_layers(solver: Solver, layers: Any) -> Solver:
    """A copy of the solver, with these layers on it or on the solver that it wraps.

    Raises:
        ValueError: the solver has no latents to lay them on.
    """
    names = {field.name for field in fields(solver)} if is_dataclass(solver) else set()
    if "reparameterization" in names:
        return replace(solver, reparameterization=layers)
    if "solver" in names:
        return replace(solver, solver=with_layers(solver.solver, layers))
    raise ValueError(f"{type(solver).__name__} takes no Gaussianization layers")
